"""Which parameters unlearning changes: all, LoRA adapters (peft), or those a pattern names."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import transformers
from torch import Tensor, nn

from .errors import ConfigError


class Tuning(ABC):
    """Which parameters are trained."""

    @abstractmethod
    def apply(self, module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        """`module` with exactly the chosen parameters trainable."""

    def export(
        self, module: transformers.PreTrainedModel, weights: Mapping[str, Tensor]
    ) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
        """The module and state dict to write as a plain transformers model."""
        return module, dict(weights)


class Full(Tuning):
    """Every parameter."""

    @dataclass
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        """Nothing to check."""
        self.config = config

    def apply(self, module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        """See `Tuning.apply`."""
        return module.requires_grad_(True)


class Layers(Tuning):
    """The parameters whose name matches a regular expression; the rest is frozen."""

    @dataclass
    class Config:
        """Which parameters."""

        parameters: str = ".*"
        """Searched in each parameter's name, e.g. `layers\\.(5|6|7)\\.mlp\\.down_proj`."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for a pattern that does not compile."""
        try:
            self.pattern = re.compile(config.parameters)
        except re.error as error:
            raise ConfigError(
                f"tuning.parameters is no regular expression: {config.parameters!r} ({error})"
            ) from error
        self.config = config

    def apply(self, module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        """See `Tuning.apply`."""
        names = [name for name, _ in module.named_parameters()]
        if not any(self.pattern.search(name) for name in names):
            raise ConfigError(
                f"tuning.parameters={self.config.parameters!r} matches no parameter; they are "
                f"called like {names[0]}, {names[len(names) // 2]}"
            )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.pattern.search(name) is not None)
        return module


class LoRA(Tuning):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685) through peft.

    The reference model is the trained model with its adapters off.
    """

    @dataclass
    class Config:
        """Size and place of the adapters."""

        rank: int = 16
        alpha: float = 32.0
        """Scale: the adapter counts alpha / rank."""
        dropout: float = 0.0
        targets: list[str] = field(default_factory=lambda: ["all-linear"])
        """Module names; `all-linear` is every linear layer but the head."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for values out of range."""
        if config.rank < 1:
            raise ConfigError(f"tuning.rank must be >= 1, got {config.rank}")
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"tuning.dropout must be in [0, 1), got {config.dropout:g}")
        self.config = config

    def apply(self, module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        """See `Tuning.apply`."""
        from peft import LoraConfig, get_peft_model  # which few runs need

        targets: list[str] | str = self.config.targets
        settings = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]
            lora_dropout=self.config.dropout,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():  # peft 0.21 calls transformers 5.23 by a deprecated name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            try:
                wrapped: transformers.PreTrainedModel = get_peft_model(module, settings)  # type: ignore[assignment]
            except ValueError as error:
                linear = {
                    n.rpartition(".")[2]
                    for n, m in module.named_modules()
                    if isinstance(m, nn.Linear)
                }
                raise ConfigError(
                    f"tuning.targets={targets} names no linear layer of the model; it has "
                    f"{', '.join(sorted(linear))}"
                ) from error
        return wrapped

    def export(
        self, module: transformers.PreTrainedModel, weights: Mapping[str, Tensor]
    ) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
        """The adapters merged into a plain model, built anew on the CPU."""
        dtype = next(iter(weights.values())).dtype
        plain = transformers.AutoModelForCausalLM.from_config(module.config, dtype=dtype)
        copy = self.apply(plain)
        found = copy.load_state_dict(dict(weights), strict=False)
        named = dict(copy.named_parameters(remove_duplicate=False))
        given = {id(p) for n, p in named.items() if n in weights}  # tied weights come once
        lost = [n for n in found.missing_keys if id(named.get(n)) not in given]
        assert not lost, f"the export lacks {lost[:3]}"
        assert not found.unexpected_keys, f"the export has no place for {found.unexpected_keys[:3]}"
        merged: transformers.PreTrainedModel = copy.merge_and_unload()  # type: ignore[operator]
        merged.generation_config = module.generation_config  # its end tokens, above all
        return merged, {n: t.detach() for n, t in merged.state_dict().items()}


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Inside, a LoRA model is the model before unlearning; any other model is itself."""
    if isinstance(module, transformers.PreTrainedModel):  # which a model within peft's is not
        yield
        return
    from peft import PeftModel

    assert isinstance(module, PeftModel), type(module)
    with module.disable_adapter():
        yield


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; works on the meta device."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
