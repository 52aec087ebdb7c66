"""Lethe's machinery: losses, gradients per objective, ZeRO, evaluation. It names no paper.

`framework.zero` stands apart, so that importing this needs neither DeepSpeed nor a GPU. Files say
`import transformers` and name what they take of it where they use it: it is loaded then, and a
mistake is told without it.
"""

from .combined import Combination
from .config import build, compose
from .data import Example, Row, Rows
from .engine import Engine, LocalEngine, Shift
from .errors import ConfigError, LetheError
from .evaluation.benchmark import Benchmark
from .language_model import LanguageModel
from .parts import FixedWeights, Perturbation, Selection, Weighting
from .preferred import Preferred
from .reference import CachedReference, FrozenReference
from .tracking import Tracker
from .trainer import UnlearningTrainer
from .vectors import Gram, Vector, gram

__all__ = [
    "Benchmark",
    "CachedReference",
    "Combination",
    "ConfigError",
    "Engine",
    "Example",
    "FixedWeights",
    "FrozenReference",
    "Gram",
    "LanguageModel",
    "LetheError",
    "LocalEngine",
    "Perturbation",
    "Preferred",
    "Row",
    "Rows",
    "Selection",
    "Shift",
    "Tracker",
    "UnlearningTrainer",
    "Vector",
    "Weighting",
    "build",
    "compose",
    "gram",
]
