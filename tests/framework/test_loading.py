"""Models from a folder or made offline, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, dynamic_module_utils

from framework.errors import ConfigError, ModelError
from framework.loading import Pretrained, Tiny, check_there, load_tokenizer, train_tokenizer
from framework.prompt_format import PromptFormat
from framework.recomputation import Recomputed
from framework.tuning import parameter_counts

TEXTS = ["Where was Ada born? In Oslo, in 1984.", "Who wrote the book? Benoit, in 2007."] * 3
SMALL = Tiny.Config(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocabulary=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model on disk."""
    model = Tiny(SMALL).build(TEXTS, seed=0)
    model.save(tmp_path / "model", model.module.state_dict())
    return tmp_path / "model"


def test_a_saved_model_loads_with_the_same_weights_and_settings(folder: Path) -> None:
    config = Pretrained.Config(
        path=str(folder), max_length=77, tokens_per_micro_batch=99, prompt_format=PromptFormat()
    )
    loaded = Pretrained(config).load(str(folder), dtype=torch.float32)
    made = Tiny(SMALL).build(TEXTS, seed=0)

    weights = loaded.module.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in made.module.state_dict().items())
    assert (loaded.max_length, loaded.tokens_per_micro_batch) == (77, 99)
    pairs = [("Where was Ada born?", "In Oslo.")]
    assert loaded.scores(pairs)[0].log_probs.tolist() == made.scores(pairs)[0].log_probs.tolist()


def test_a_saved_model_is_a_plain_transformers_model(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)

    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.config._attn_implementation in ("sdpa", "eager")
    generated = plain.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > 3


def test_weights_come_in_the_precision_asked_for(folder: Path) -> None:
    loaded = Pretrained(Pretrained.Config(path=str(folder))).load(str(folder), dtype=torch.bfloat16)

    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}


def test_a_tiny_model_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first, again, other = (Tiny(SMALL).build(TEXTS, seed=seed).module for seed in (0, 0, 1))

    assert all(torch.equal(w, again.state_dict()[n]) for n, w in first.state_dict().items())
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_a_tiny_tokenizer_gives_every_text_back_and_splits_digits() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=320)

    for text in [*TEXTS, "äöü, 漢字 and a\ttab", "  spaces  "]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("2007") == ["2", "0", "0", "7"]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_skeleton_has_the_models_shape_and_no_weights(folder: Path) -> None:
    for source in (Tiny(SMALL), Pretrained(Pretrained.Config(path=str(folder)))):
        skeleton = source.skeleton()
        assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    built = Tiny(SMALL).build(TEXTS, seed=0).module
    assert parameter_counts(skeleton) == parameter_counts(built)


def test_the_skeleton_of_a_7b_model_needs_its_config_alone(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)  # the first Llama, 7B
    skeleton = Pretrained(Pretrained.Config(path=str(tmp_path))).skeleton()

    assert parameter_counts(skeleton)[0] == 6_738_415_616  # arXiv:2302.13971, table 2: 6.7B


@pytest.mark.parametrize("setting", [True, "selective", False])
def test_gradient_checkpointing_is_switched_on(setting: Recomputed) -> None:
    config = Tiny.Config(hidden_size=16, layers=1, heads=2, vocabulary=300)
    config.gradient_checkpointing = setting

    assert Tiny(config).build(TEXTS, seed=0).module.is_activation_checkpointing is bool(setting)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere")
    source = Pretrained(Pretrained.Config(path=path))

    for attempt in (lambda: source.load(path, dtype=torch.float32), source.skeleton):
        with pytest.raises(ModelError) as refused:
            attempt()
        assert str(refused.value).startswith(f"there is no folder {path!r}; ")
        assert "\n" not in str(refused.value)


def test_that_the_hub_is_asked_is_said_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_there("someone/some-model")  # offline, as the tests are, it is not asked
    monkeypatch.setattr("framework.loading.is_offline_mode", lambda: False)
    check_there(str(folder))
    assert capsys.readouterr().err == ""

    check_there("someone/some-model")
    said = "someone/some-model is not on this machine: asking the hub for it\n"
    assert capsys.readouterr().err == said


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    source = Pretrained(Pretrained.Config(path=str(folder)))

    with pytest.raises(ModelError, match=r"no model could be loaded from .* \(folder\): "):
        source.load(str(folder), dtype=torch.float32)


def test_weights_that_are_damaged_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    source = Pretrained(Pretrained.Config(path=str(folder)))

    with pytest.raises(ModelError, match=r"no model could be loaded from .* \(folder\): "):
        source.load(str(folder), dtype=torch.float32)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = Pretrained(Pretrained.Config(path=str(folder)))

    with pytest.raises(ModelError, match=r"lack 1 of the model's, such as .*up_proj.weight"):
        source.load(str(folder), dtype=torch.float32)


def test_weights_of_other_shapes_are_refused(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}))
    source = Pretrained(Pretrained.Config(path=str(folder)))

    with pytest.raises(ModelError, match=r"other shapes than its config\.json says"):
        source.load(str(folder), dtype=torch.float32)


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()

    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        load_tokenizer(str(folder))


def test_a_tokenizer_that_cannot_end_a_text_is_refused(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    with pytest.raises(ModelError, match=r"has no EOS token, .* set eos_token in its"):
        load_tokenizer(str(folder))


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.path is empty"):
        Pretrained(Pretrained.Config())
    for name in ("max_length", "tokens_per_micro_batch"):
        with pytest.raises(ConfigError, match=rf"model\.{name} must be at least 2, got 1"):
            Tiny(Tiny.Config(**{name: 1}))
    with pytest.raises(ConfigError, match=r"model\.hidden_size=10 must be an even multiple of"):
        Tiny(Tiny.Config(hidden_size=10))
    with pytest.raises(ConfigError, match=r"model\.heads must be at least 1, got 0"):
        Tiny(Tiny.Config(heads=0))
    with pytest.raises(ConfigError, match=r"model\.vocabulary must be at least 259"):
        Tiny(Tiny.Config(vocabulary=100))


def test_rows_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    model = tiny.language_model()  # of 128 positions
    model.save(tmp_path / "model", model.module.state_dict())
    source = Pretrained(Pretrained.Config(path=str(tmp_path / "model"), max_length=129))
    with pytest.raises(ModelError, match=r"type model\.max_length=128"):
        source.load(str(tmp_path / "model"), dtype=torch.float32)


def test_the_tiny_models_of_the_tests_load_too(tmp_path: Path) -> None:
    model = tiny.language_model()
    model.save(tmp_path / "model", model.module.state_dict())
    source = Pretrained(Pretrained.Config(path=str(tmp_path / "model"), max_length=128))
    loaded = source.load(str(tmp_path / "model"), dtype=torch.float32)

    assert loaded.generate(["t5 t6"], 4) == model.generate(["t5 t6"], 4)


def test_fresh_weights_fit_the_tokenizer_of_any_model():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<far>"])
    model = Tiny(Tiny.Config(hidden_size=8, layers=1)).fresh(tokenizer, seed=0)
    config = model.module.config
    assert config.vocab_size == len(tokenizer) == tiny.VOCABULARY + 1
    special = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    assert special == (0, 1, 2)
    assert model.tokenizer is tokenizer


@pytest.mark.filterwarnings("error")
def test_the_first_blocks_of_a_model_are_a_model(tmp_path: Path, capfd) -> None:
    whole = tiny.language_model()
    whole.save(tmp_path / "model", whole.module.state_dict())
    config = Pretrained.Config(path=str(tmp_path), max_length=64, layers=1)
    source = Pretrained(config)
    cut = source.load(str(tmp_path), dtype=torch.float32)

    kept = {n: w for n, w in whole.module.state_dict().items() if "layers.1." not in n}
    found = cut.module.state_dict()
    assert found.keys() == kept.keys() == source.skeleton().state_dict().keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert capfd.readouterr().err == ""
    cut.save(tmp_path / "again", found)
    again = Pretrained(Pretrained.Config(path=str(tmp_path / "again"), max_length=64))
    assert again.load(str(tmp_path / "again"), dtype=torch.float32).module.config.num_hidden_layers
    for wrong in (0, 3):
        config.layers = wrong
        with pytest.raises(ConfigError, match=rf"model.layers must be from 1 to 2, .* got {wrong}"):
            source.skeleton()


def test_files_of_a_saved_model_have_the_users_permissions(folder: Path) -> None:
    mask = os.umask(0o027)
    try:
        model = Tiny(SMALL).build(TEXTS, seed=0)
        model.save(folder.parent / "own", model.module.state_dict())
        assert os.umask(0o027) == 0o027, "the mask is as it was"
    finally:
        os.umask(mask)

    modes = {file.name: file.stat().st_mode & 0o777 for file in (folder.parent / "own").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_code_that_comes_with_a_model_runs_only_where_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "code"))
    proof = folder / "ran"
    code = f"""
from transformers import LlamaConfig, LlamaForCausalLM
open({str(proof)!r}, "w").close()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
    (folder / "own_code.py").write_text(code)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    path = str(folder)

    with pytest.raises(ModelError) as refused:
        Pretrained(Pretrained.Config(path=path)).load(path, dtype=torch.float32)

    assert str(refused.value).endswith(
        "it needs Python code of its own; type model.trust_remote_code=true to run that"
    )
    assert not proof.exists()
    trusting = Pretrained(Pretrained.Config(path=path, trust_remote_code=True))
    assert type(trusting.load(path, dtype=torch.float32).module).__name__ == "OwnModel"
    assert proof.exists()
