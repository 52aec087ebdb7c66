"""The named errors of a user's mistakes: what was given, what is allowed, what to type.

Entry points print that one line and leave with exit code 2. Our own invariants are asserts.
"""


class LetheError(ValueError):
    """A mistake that a user can mend."""


class ConfigError(LetheError):
    """A setting, a choice or a combination of them that is not allowed."""


class DataError(LetheError):
    """Rows that are missing, empty, overlapping or do not fit the model."""


class ModelError(LetheError):
    """A model or tokenizer that cannot be loaded or lacks what unlearning needs."""


class CheckpointError(LetheError):
    """A checkpoint that is incomplete, damaged, or of another model."""


class WorldSizeError(CheckpointError):
    """A checkpoint that was written by another number of processes."""


class RunExistsError(LetheError):
    """An output folder that already holds a run."""


class NonFiniteError(LetheError):
    """A loss or a gradient that became NaN or infinite."""
