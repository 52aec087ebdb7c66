"""The method: what a published method states, its losses and what they need of the model.

A loss is this micro-batch's share of the step's mean (`rows.token_mean`, `rows.row_mean`), so
neither accumulation nor the number of ranks changes a result. Methods subclass `UnlearningTrainer`,
which takes the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from .data import Row, Rows
from .errors import ConfigError
from .language_model import LanguageModel
from .losses import kl_divergence, raw_kl, state_distance
from .objectives import family
from .parts import FixedWeights, Weighting
from .reference import Asked, Reference


class Method:
    """A forget and a retain loss."""

    objectives: tuple[str, ...] = ("forget", "retain")
    asks_reference_for: ClassVar[Asked | None] = None
    """What `forget_loss` reads of the model before unlearning; None: nothing."""
    prefers: ClassVar[bool] = False
    """Whether forget rows come with a preferred answer (`rows.split`); `Config` then has a setting
    `preferred` of the type `Preferred`."""
    surrogate: ClassVar[bool] = False
    """Whether `forget_loss` holds a part of itself constant (a weight, a target), so that a step
    against its gradient need not lower it."""

    @dataclass
    class Config:
        """Settings of every method."""

        forget_weight: float = 1.0
        """Weight of the forget objective under the default weighting."""
        retain_weight: float = 1.0
        """Weight of the retain objective under the default weighting."""
        retain_loss: Literal["nll", "kl", "states", "none"] = "nll"
        """nll; kl: KL(reference || model) per token; states: squared distance to the reference's
        hidden states; none: no retain."""
        kl_parity: Literal["none", "all_positions", "raw_logits"] = "none"
        """How released code has kl. all_positions: mean over prompts too (open-unlearning's
        src/trainer/utils.py); raw_logits: sum of exp(z_ref) (z_ref - z) over all positions, mean
        over rows, no divergence (muse_bench's baselines/baselines/iterative.py). Both compute
        logits everywhere, and keep a frozen reference."""
        layer: int | None = None
        """The decoder block whose output hidden states are, 1 the first; null: the middle one."""
        reference: Literal["auto", "cached", "frozen"] = "auto"
        """cached: what the losses read of it, on disk; frozen: the whole model; auto: cached, but
        frozen where a loss reads every position."""
        on_nonfinite: Literal["stop", "skip"] = "stop"
        """What to do when a gradient is NaN or infinite: stop the run, or skip the step."""
        compare_every: int = 10
        """Every so many steps the objectives' gradients are taken apart even where the weighting
        does not ask for it, so that their norms and their cosine are on record; 0: never."""

    config: Config
    model: LanguageModel
    _reference: Reference | None

    def forget_loss(self, rows: Rows) -> Tensor:
        """This micro-batch's share of the forget objective, a scalar to minimise."""
        raise ConfigError(f"{type(self).__name__} states no forget loss")

    def retain_loss(self, rows: Rows) -> Tensor:
        """This micro-batch's share of the retain objective.

        nll, kl: mean over tokens; states: mean over rows of their tokens' mean |h - h_ref|^2 / D.
        """
        if self.config.retain_loss == "kl":
            return self._kl(rows)
        if self.config.retain_loss == "states":
            before = self.reference.states(rows, self.layer)
            return self.distance(rows, self.states(rows), before)
        return rows.token_mean(-self.model.token_log_probs(rows))

    def _kl(self, rows: Rows) -> Tensor:
        parity = self.config.kl_parity
        read = rows if parity == "none" else rows.everywhere()
        before = self.reference.logits_of(read)
        divergence = raw_kl if parity == "raw_logits" else kl_divergence
        values = self.model.of_logits(read, lambda z, chunk: divergence(z, before(chunk)))
        if parity == "raw_logits":
            return read.row_mean(read.row_sum(values))
        return read.token_mean(values)

    def distance(self, rows: Rows, states: Tensor, target: Tensor) -> Tensor:
        """Share of the mean over rows of their tokens' mean distance of `states` to `target`."""
        return rows.row_mean(rows.within_rows(state_distance(states, target)))

    def states(self, rows: Rows) -> Tensor:
        """[S, D] output of decoder block `layer` where the next token counts."""
        return self.model.states(rows, self.layer)

    def log_ratios(self, rows: Rows) -> Tensor:
        """[R] log p/p_ref of each row's answer, in nats; p_ref is the model's before unlearning.

        Differences are added up: a difference of sums, of a thousand tokens in fp32, is 0.01 off.
        """
        return rows.row_sum(self.model.token_log_probs(rows) - self.reference.token_log_probs(rows))

    @property
    def layer(self) -> int:
        """The decoder block whose output hidden states are, counted from 1."""
        return layer_of(self.config, self.model.module.config)

    @classmethod
    def check(cls, config: Config, model_config: Any) -> None:
        """Raise ConfigError for settings that do not fit the model, before it is loaded.

        `model_config`: transformers' own.
        """
        for name in ("forget_weight", "retain_weight", "compare_every"):
            if not getattr(config, name) >= 0:
                raise ConfigError(f"trainer.{name} must be >= 0, got {getattr(config, name):g}")
        if config.layer is not None:
            layer_of(config, model_config)
        if config.kl_parity != "none" and config.retain_loss != "kl":
            raise ConfigError(
                f"trainer.kl_parity={config.kl_parity} is a way to have the retain loss kl, this "
                f"run has {config.retain_loss}; type trainer.retain_loss=kl"
            )

    @classmethod
    def reads_everywhere(cls, config: Config) -> bool:
        """Whether `forget_loss` reads every position, so that no selection can tell it where."""
        del config
        return False

    @classmethod
    def reads_scored(cls, config: Config) -> bool:
        """Whether the losses ask the model about the rows' scored positions and no others.

        Then what rows begin with alike is read once.
        """
        return not cls.reads_everywhere(config) and config.kl_parity == "none"

    @classmethod
    def reads_once(cls, config: Config) -> bool:
        """Whether they ask about them at the output head alone, about no block's hidden states.

        Then one forward pass serves the losses of all objectives. Where it is false and
        `reads_scored` is true, hidden states are read by `model.states`, at the scored positions.
        """
        return cls.reads_scored(config) and config.retain_loss != "states"

    def default_weighting(self) -> Weighting:
        """The weighting published with the method; a weighting in the config wins over it."""
        retain = [name for name in self.objectives if family(name) == "retain"]
        shares = {name: self.config.retain_weight / len(retain) for name in retain}
        return FixedWeights({"forget": self.config.forget_weight, **shares})

    @property
    def reference(self) -> Reference:
        """The model before unlearning."""
        if self._reference is None:
            raise ConfigError(
                f"{type(self).__name__} reads the model before unlearning without asking for it; "
                "name what its forget loss reads of it in the method's `asks_reference_for`, and "
                "where its retain loss reads it, too, type trainer.reference=frozen"
            )
        return self._reference


def layer_of(config: Method.Config, model_config: Any) -> int:
    """The decoder block that `config` names, from 1 to as many as the model has."""
    blocks: int = model_config.get_text_config().num_hidden_layers
    layer = max(1, blocks // 2) if config.layer is None else config.layer
    if not 1 <= layer <= blocks:
        raise ConfigError(
            f"trainer.layer must be from 1 to {blocks}, the model's decoder blocks, got {layer}; "
            f"type trainer.layer={max(1, blocks // 2)}, or null for the middle one"
        )
    return layer


def asked_of_reference(kind: type[Method], config: Method.Config) -> dict[str, Asked]:
    """What the losses of a family of objectives read of the model before unlearning."""
    asked: dict[str, Asked] = {}
    if kind.asks_reference_for is not None:
        asked["forget"] = kind.asks_reference_for
    if config.retain_loss in ("kl", "states") and "retain" in kind.objectives:
        asked["retain"] = "logits" if config.retain_loss == "kl" else "states"
    return asked


def read_of_reference(
    kind: type[Method], config: Method.Config, rows: Mapping[str, Sequence[Row]]
) -> dict[Asked, list[Row]]:
    """The rows, given by objective, by what the losses read of the model before unlearning."""
    asked, found = asked_of_reference(kind, config), dict[Asked, list[Row]]()
    for name, given in rows.items():
        if family(name) in asked:
            found.setdefault(asked[family(name)], []).extend(given)
    return found


def reference_needed(
    kind: type[Method], config: Method.Config
) -> Literal["cached", "frozen"] | None:
    """Which reference a run must be built with.

    Raises ConfigError when the config asks for one that does not serve the losses.
    """
    asked = asked_of_reference(kind, config)
    if not asked:
        return None
    everywhere = "forget" in asked and kind.reads_everywhere(config)
    if everywhere or config.kl_parity != "none":
        if config.reference == "cached":
            raise ConfigError(
                "the cached reference holds what answer tokens need, and these settings read every "
                "position; type trainer.reference=frozen to keep the whole model"
            )
        return "frozen"
    return "frozen" if config.reference == "frozen" else "cached"
