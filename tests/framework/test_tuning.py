"""Tuning: which parameters move, and that what is exported is a plain transformers model."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from framework import ConfigError, LanguageModel, Rows
from framework.tuning import Layers, LoRA, adapters_off, parameter_counts

PLAN = tiny.step_rows(3)


def trained(tuning: str, **settings: object):
    """The engine after three steps."""
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, tuning=tuning, **settings)
    trainer = tiny.trainer(engine, engine.model, PLAN, method="npo", optimizer=optimizer)
    tiny.train(trainer, PLAN, tokens=40)
    return engine


def moved(tuning: str) -> set[str]:
    before = dict(tiny.module().named_parameters())
    after = trained(tuning).model.module
    plain = after.get_base_model() if isinstance(after, PeftModel) else after
    return {
        name
        for name, p in plain.named_parameters()
        if name in before and not torch.equal(p, before[name])
    }


def test_full_tuning_moves_everything():
    assert moved("full") == {name for name, _ in tiny.module().named_parameters()}


def test_layers_move_exactly_what_the_pattern_names():
    projections = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert moved("layers") == projections | {"model.layers.0.input_layernorm.weight"}


def test_lora_leaves_the_models_own_parameters():
    assert moved("lora") == set()
    names = trained("lora").master_weights()
    assert names
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_a_pattern_that_matches_nothing_shows_what_there_is():
    with pytest.raises(ConfigError, match=r"'nothing' matches no parameter.*model\.embed_tokens"):
        Layers(Layers.Config(parameters="nothing")).apply(tiny.module())


def test_a_pattern_that_does_not_compile_is_refused():
    with pytest.raises(ConfigError, match=r"tuning\.parameters is no regular expression: '\('"):
        Layers(Layers.Config(parameters="("))


def test_a_rank_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"tuning\.rank must be >= 1, got 0"):
        LoRA(LoRA.Config(rank=0))


def test_parameters_are_counted():
    module = tiny.module()
    whole = sum(p.numel() for p in module.parameters())
    assert parameter_counts(module) == (whole, whole)
    lora = LoRA(LoRA.Config(rank=1, targets=["q_proj"])).apply(module)
    # per layer A [1, 32] and B [32, 1]; two layers
    assert parameter_counts(lora) == (whole + 128, 128)


def test_adapters_are_off_inside_and_on_again_after_an_error():
    engine = trained("lora")
    model, batch = engine.model, Rows.pack(PLAN[0]["forget"])
    on = model.logits(batch)
    with adapters_off(model.module):
        assert not torch.allclose(model.logits(batch), on)
    assert torch.equal(model.logits(batch), on)
    with pytest.raises(ZeroDivisionError), adapters_off(model.module):
        1 / 0  # noqa: B018
    assert torch.equal(model.logits(batch), on)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tuning", ["full", "layers", "lora"])
def test_what_is_exported_is_a_plain_model_with_the_same_logits(tmp_path, tuning, tied):
    engine = trained(tuning, tied=tied)
    model = engine.model
    model.module.generation_config = GenerationConfig(eos_token_id=[2, 9], pad_token_id=0)
    module, weights = tiny.TUNINGS[tuning].export(model.module, engine.state_dict())
    assert not isinstance(module, PeftModel)
    model.save(tmp_path / "model", weights, module=module)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    names = {name for name, _ in tiny.module(tied=tied).named_parameters()}
    assert {name for name, _ in loaded.named_parameters()} == names
    again = LanguageModel(loaded, model.tokenizer, prompt_format=model.prompt_format, max_length=64)
    batch = Rows.pack(PLAN[0]["forget"])
    tolerance = 1e-5 if tuning == "lora" else 0  # merging rounds
    assert (again.logits(batch) - model.logits(batch)).abs().max() <= tolerance
    assert loaded.generation_config.eos_token_id == [2, 9]  # chat models end in several ways
    assert loaded.config.use_cache  # whoever generates with it wants its cache
