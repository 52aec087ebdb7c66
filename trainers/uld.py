"""ULD: unlearning from logit difference (Ji et al., 2024, arXiv:2406.08607)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import log_softmax

from framework import Combination, ConfigError, Rows, UnlearningTrainer
from framework.combined import keep_likely


class ULD(Combination):
    """Take off the logits of an assistant that knows the forget rows and nothing else.

    They are taken off where the model itself finds a token likely: of at least `filter` times the
    likeliest one's probability, or among the `filter` likeliest share of the vocabulary, which
    keeps several where the model is sure. The released code (UCSB-NLP-Chang/ULD) leaves the other
    tokens their own logits in teacher-forced scores, as here, but excludes them from greedy
    answers. `outside: excluded` does so in both: 1000 nats lie between the tokens then, and numbers
    from probabilities say little.
    """

    others: ClassVar[tuple[str, ...]] = ("assistant",)

    @dataclass
    class Config(Combination.Config):
        """ULD's own settings."""

        assistant: str = ""
        """A model of `trainer=uld`: a run, a folder, or a name on the hub."""
        weight: float = -0.8
        """What the assistant's logits count, <= 0; 0 is the model itself."""
        filter: float = 0.01
        """Share of the likeliest token's probability that a token needs, and of the vocabulary
        that always passes, in [0, 1]; 0: all tokens pass."""
        outside: Literal["unchanged", "excluded"] = "unchanged"
        """unchanged: the other tokens keep their own logits; excluded: they are never chosen."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers out of range."""
            if not self.weight <= 0:
                raise ConfigError(f"model.weight must be <= 0, got {self.weight:g}")
            if not 0 <= self.filter <= 1:
                raise ConfigError(f"model.filter must be in [0, 1], got {self.filter:g}")

    config: Config

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """[S, V] z + weight z_assistant where a token passes the filter on z."""
        original, assistant = logits
        config = self.config
        mixed = original + config.weight * assistant
        fewest = int(config.filter * original.shape[-1])
        outside = None if config.outside == "excluded" else original
        return keep_likely(mixed, original, share=config.filter, fewest=fewest, outside=outside)


class ULDAssistant(UnlearningTrainer):
    """Learn the forget rows by heart and find every token of the retain rows equally likely.

    The result is not an unlearned model but ULD's assistant. The paper trains the target's first
    eight blocks with LoRA (`model.layers=8 tuning=lora`), on paraphrased forget rows and wrong
    retain answers too; here it is any model of the same tokenizer, on the benchmark's own rows.
    """

    @dataclass
    class Config(UnlearningTrainer.Config):
        """The assistant's retain objective."""

        retain_weight: float = 5.0
        """Weight of the retain objective under the default weighting."""
        retain_loss: Literal["uniform", "none"] = "uniform"  # type: ignore[assignment]
        """uniform: cross-entropy to the uniform distribution; none: no retain."""

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of -log p: the forget rows are what it learns."""
        return rows.token_mean(-self.model.token_log_probs(rows))

    def retain_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of the cross-entropy -1/V sum_v log p_v to the uniform distribution.

        The released code's KL(uniform || p) is this minus log V, and counts the prompt too.
        """
        return rows.token_mean(
            self.model.of_logits(rows, lambda logits, _: -log_softmax(logits, -1).mean(-1))
        )
