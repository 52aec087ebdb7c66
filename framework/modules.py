"""What lies inside a transformers module: decoder blocks, trained parameters, embeddings, head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import Tensor, nn

from .errors import ModelError


@contextmanager
def up_to(module: transformers.PreTrainedModel, layer: int) -> Iterator[None]:
    """Inside, the model has its first `layer` blocks alone, and the last one's output in its own.

    The list of blocks is cut short, rather than a forward pass left by an error half way: hooks of
    ZeRO-3 must all run to their end. What a loss is made of must be in the output: DeepSpeed
    prepares a backward pass when it reaches a tensor of the output.
    """
    decoder, name = _place_of_blocks(module)
    whole: nn.ModuleList = getattr(decoder, name)
    assert 1 <= layer <= len(whole), layer
    caught: list[Tensor] = []

    def catch(_block: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        caught.append(output if isinstance(output, Tensor) else output[0])

    def hand_out(_module: nn.Module, _given: object, output: dict[str, Any]) -> None:
        output["hidden_states"] = tuple(caught)

    hooks = whole[layer - 1].register_forward_hook(catch), module.register_forward_hook(hand_out)
    setattr(decoder, name, whole[:layer])
    try:
        yield
    finally:
        setattr(decoder, name, whole)
        for hook in hooks:
            hook.remove()


def _place_of_blocks(module: transformers.PreTrainedModel) -> tuple[nn.Module, str]:
    """The decoder, and what it calls the list of its blocks; raises ModelError without one."""
    decoder, count, found = _lists_of_blocks(module)
    if len(found) != 1:
        blocks = "decoder blocks" if count is None else f"{count} decoder blocks"
        raise ModelError(
            f"{type(decoder).__name__} has no list of its {blocks}, so that hidden "
            "states cannot be read; use another model family (Llama, OLMo, Qwen, Mistral, Phi, "
            "Gemma 3, GPT-2, GPT-NeoX), or a method that reads none"
        )
    return decoder, found[0]


def final_block(module: transformers.PreTrainedModel) -> nn.Module | None:
    """The last decoder block; None where they are in no list."""
    decoder, _, found = _lists_of_blocks(module)
    blocks: nn.ModuleList | None = getattr(decoder, found[0]) if len(found) == 1 else None
    return None if blocks is None else blocks[-1]


def _lists_of_blocks(
    module: transformers.PreTrainedModel,
) -> tuple[nn.Module, int | None, list[str]]:
    """The decoder, how many blocks it has, and the names of what may be their list."""
    decoder = module.get_decoder()
    try:
        count = module.config.get_text_config().num_hidden_layers
    except (AttributeError, ValueError):  # it has several decoders: Blt, Musicgen
        count = None
    lists = [(n, m) for n, m in decoder.named_children() if isinstance(m, nn.ModuleList)]
    return decoder, count, [name for name, blocks in lists if len(blocks) == count]


def trainable_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of everything that training changes, in the module's order."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ModelError("nothing is trainable: set tuning=full, or mend tuning.parameters")
    return named


def embeddings_and_head(module: nn.Module) -> set[str]:
    """Names of the embeddings' and the output head's parameters, adapters of theirs included."""
    head = module.get_output_embeddings()  # type: ignore[operator] # of transformers, or peft
    places = tuple(
        name.removesuffix(".base_layer") + "."
        for name, part in module.named_modules()
        if part is head or isinstance(part, nn.Embedding)
    )
    return {name for name, _ in module.named_parameters() if name.startswith(places)}


def drops_out(module: nn.Module) -> bool:
    """Whether any part of it drops something out in training."""
    for part in module.modules():
        layer = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0  # noqa: SLF001 - all of torch's
        own = [value for name, value in vars(part).items() if "dropout" in name]
        if layer or any(isinstance(value, float) and value > 0 for value in own):
            return True
    return False
