"""The reference: cached, frozen, or the trained model with its adapters off."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch

from framework import (
    CachedReference,
    ConfigError,
    FrozenReference,
    LanguageModel,
    Row,
    Rows,
    UnlearningTrainer,
)
from framework.errors import CheckpointError
from framework.prompt_format import PromptFormat
from framework.sampler import ForgetRetainSampler
from framework.shared import pack
from framework.token_table import write
from framework.tuning import LoRA
from trainers.npo import NPO
from trainers.rmu import RMU
from trainers.undial import UNDIAL

ROWS = tiny.rows(6, name="reference")
KINDS = ("log_probs", "logits", "states")
PARTS = (ROWS, ROWS[3:1:-1], ROWS[5:])


def cached(model: LanguageModel, rows: list[Row] = ROWS, **places: Path) -> CachedReference:
    """All that can be kept of the rows, in memory unless there are `places`."""
    return CachedReference.build(model, dict.fromkeys(KINDS, rows), layer=1, **places)


def whole(reference: CachedReference | FrozenReference, batch: Rows) -> list[torch.Tensor]:
    """All that a loss can read of the rows."""
    logits = reference.logits_of(batch)
    return [
        reference.token_log_probs(batch),
        torch.cat([logits(slice(0, 2)), logits(slice(2, len(batch.scored)))]),
        reference.states(batch, 1),
    ]


def reads_of(model: LanguageModel) -> list[int]:
    """How many rows each forward pass reads from now on."""
    read: list[int] = []

    def note(_module: object, _given: object, named: dict[str, Any]) -> None:
        read.append(len(named["boundaries"]) - 1)

    model.module.register_forward_pre_hook(note, with_kwargs=True)
    return read


# ---- what is kept --------------------------------------------------------------------------------


def test_the_cache_holds_what_the_frozen_model_says(tmp_path):
    model = tiny.language_model()
    frozen = FrozenReference(model)
    for kept in (cached(model), cached(model, folder=tmp_path / "run")):
        for part in PARTS:
            batch = Rows.pack(part)
            for mine, theirs in zip(whole(kept, batch), whole(frozen, batch), strict=True):
                assert mine.shape == theirs.shape
                assert (mine - theirs).abs().max() <= 1e-5
                assert not mine.requires_grad
                assert not theirs.requires_grad


def test_rows_that_are_read_with_what_others_begin_with_have_their_own_numbers():
    forks = [replace(row, id=f"{row.id}'", input_ids=(*row.input_ids[:-1], 7)) for row in ROWS]
    model, rows = tiny.language_model(), sorted([*ROWS, *forks], key=lambda row: row.input_ids)
    kept, shared = cached(model, rows), pack(rows)
    assert len(shared.input_ids) < sum(map(len, rows))
    for mine, theirs in zip(whole(kept, shared), whole(kept, Rows.pack(rows)), strict=True):
        assert torch.equal(mine, theirs)


def test_in_bf16_states_are_kept_in_bf16_and_logits_come_in_fp32(tmp_path):
    model = tiny.language_model()
    model.cast(torch.bfloat16)
    kept, batch = cached(model, folder=tmp_path), Rows.pack(ROWS)
    right = whole(FrozenReference(model), batch)
    found = whole(kept, batch)
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.bfloat16]
    assert max(float((a - b).abs().max()) for a, b in zip(found, right, strict=True)) <= 0.05
    tokens = sum(int(row.weight) for row in ROWS)
    assert (tmp_path / "states.safetensors").stat().st_size < tokens * 32 * 2 + 400


def test_the_cache_is_read_at_a_rows_own_tokens_even_when_fewer_count():
    # a selection has cut tokens since: the rest must be found at their own places
    model = tiny.language_model()
    kept = cached(model)
    counted = [t for t, w in enumerate(ROWS[0].weights) if w]
    weights = tuple(w if t in counted[1::2] else 0.0 for t, w in enumerate(ROWS[0].weights))
    batch = Rows.pack([ROWS[1], Row(ROWS[0].id, ROWS[0].input_ids, weights), ROWS[2]])
    right = whole(FrozenReference(model), batch)
    for mine, theirs in zip(whole(kept, batch), right, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5


def test_rows_that_teach_nothing_here_are_read_without_harm():
    kept = cached(tiny.language_model())
    idle = Rows.pack([replace(ROWS[0], weights=(0.0,) * len(ROWS[0]))])
    assert [len(x) for x in whole(kept, idle)] == [1, 1, 1]
    assert all(bool(x.isfinite().all()) for x in whole(kept, idle))


def test_of_rows_without_any_token_nothing_is_kept(tmp_path):
    rows = [replace(row, weights=(0.0,) * len(row)) for row in ROWS]
    kept = cached(tiny.language_model(), rows, folder=tmp_path / "run")
    assert [len(x) for x in whole(kept, Rows.pack(rows))] == [1, 1, 1]
    assert not (tmp_path / "run").exists()


def test_the_cache_holds_both_answers_of_a_pair():
    model, pairs = tiny.language_model(), tiny.pairs(4, name="pairs")
    kept = CachedReference.build(model, {"log_probs": pairs})
    frozen = FrozenReference(model)
    for part in (pairs, pairs[::-2]):
        batch = Rows.pack(part)
        apart = kept.token_log_probs(batch) - frozen.token_log_probs(batch)
        assert apart.abs().max() <= 1e-5
        assert set(batch.row_of.tolist()) == set(range(2 * len(part)))


@pytest.mark.parametrize("tuning", ["full", "layers", "lora"])
def test_the_cache_does_not_move_with_the_trained_model(tuning):
    plan = tiny.step_rows(2)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, tuning=tuning)
    trainer = tiny.trainer(engine, engine.model, plan, method="npo_kl", optimizer=optimizer)
    batch = Rows.pack(plan[0]["retain"])
    first = trainer.reference.logits_of(batch)(slice(None))
    tiny.train(trainer, plan, tokens=30)
    assert torch.equal(trainer.reference.logits_of(batch)(slice(None)), first)
    assert not torch.allclose(engine.model.logits(batch), first)
    with tiny.language_model().evaluating():
        assert (tiny.language_model().logits(batch) - first).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", [{"logit_scale": 0.5}, {"logit_scale": 1.0}])
def test_a_model_that_scales_its_heads_logits_is_not_kept_without_the_scale(settings):
    model = families.language_model(families.family("cohere", **settings))
    model.check_packing()
    if settings["logit_scale"] != 1:
        with pytest.raises(ConfigError, match=r"logits.*; type trainer\.reference=frozen"):
            CachedReference.build(model, {"logits": ROWS})
        return
    logits = CachedReference.build(model, {"logits": ROWS}).logits_of(Rows.pack(ROWS))
    right = FrozenReference(model).logits_of(Rows.pack(ROWS))
    assert (logits(slice(None)) - right(slice(None))).abs().max() <= 1e-5


def test_logits_that_a_cap_changes_by_less_than_bf16_rounds_are_not_kept_without_it():
    model = families.language_model(
        families.family("gemma3_text", head_dim=8, final_logit_softcapping=200.0)
    )
    model.cast(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"more than its output head's product") as said:
        CachedReference.build(model, {"logits": ROWS})
    assert "\n" not in str(said.value)


def test_a_head_with_adapters_is_kept_without_them():
    adapted = LanguageModel(
        LoRA(LoRA.Config(rank=4, alpha=8.0, targets=["lm_head"])).apply(tiny.module()),
        tiny.tokenizer(),
        prompt_format=PromptFormat(),
        max_length=64,
    )
    with torch.no_grad():
        for name, p in adapted.module.named_parameters():
            if "lora" in name:
                p.fill_(0.1)
    kept = CachedReference.build(adapted, {"logits": ROWS}).logits_of(Rows.pack(ROWS))
    right = tiny.language_model().logits(Rows.pack(ROWS))
    assert (kept(slice(None)) - right).abs().max() <= 1e-5
    assert (adapted.logits(Rows.pack(ROWS)) - right).abs().max() > 1e-2


def test_what_was_not_asked_for_is_one_line_that_names_what_to_type():
    class Curious(NPO):
        def forget_loss(self, rows: Rows) -> torch.Tensor:
            return self.reference.states(rows, 1).sum()

    plan, optimizer = tiny.step_rows(1), tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    said = r"reads states .*, of which log_probs were kept; .*type trainer\.reference=frozen"
    trainer = tiny.assemble(
        Curious, Curious.Config(), engine, tiny.language_model(), plan, optimizer=optimizer
    )
    with pytest.raises(ConfigError, match=said):
        tiny.train(trainer, plan, tokens=1000)
    Curious.asks_reference_for = None
    trainer = tiny.assemble(
        Curious, Curious.Config(), engine, tiny.language_model(), plan, optimizer=optimizer
    )
    with pytest.raises(ConfigError, match=r"Curious reads .* name what .* `asks_reference_for`"):
        tiny.train(trainer, plan, tokens=1000)


def test_a_retain_loss_that_reads_what_is_kept_of_forget_rows_is_told_what_to_type():
    class Anchored(NPO):
        def retain_loss(self, rows: Rows) -> torch.Tensor:
            before = self.reference.token_log_probs(rows)
            return rows.token_mean((self.model.token_log_probs(rows) - before).square())

    plan, optimizer = tiny.step_rows(1), tiny.optimizer("sgd", clip=None)

    def trainer(**settings: Any) -> UnlearningTrainer:
        engine = tiny.local_engine(optimizer)
        config = Anchored.Config(**settings)
        before = tiny.language_model()
        return tiny.assemble(Anchored, config, engine, before, plan, optimizer=optimizer)

    with pytest.raises(
        ConfigError, match=r"at row r0-0, .*; type trainer\.reference=frozen"
    ) as said:
        tiny.train(trainer(), plan, tokens=1000)
    assert "\n" not in str(said.value)
    tiny.train(trainer(reference="frozen"), plan, tokens=1000)  # the remedy is one


def test_states_of_another_block_than_is_kept_are_one_line_that_names_what_to_type():
    kept = cached(tiny.language_model())
    with pytest.raises(ConfigError, match=r"block 2 .* block 1 were kept; type trainer\.layer=2,"):
        kept.states(Rows.pack(ROWS), 2)


def test_what_was_kept_when_less_was_refused_is_read_anew(tmp_path, monkeypatch):
    model, cache = tiny.language_model(), tmp_path / "cache"
    monkeypatch.setattr("framework.reference.FORMAT", 1)
    cached(model, folder=tmp_path / "a", cache=cache)
    monkeypatch.undo()
    assert cached(model, folder=tmp_path / "b", cache=cache).taken == ()
    assert cached(model, folder=tmp_path / "c", cache=cache).taken == KINDS


# ---- training against it -------------------------------------------------------------------------

METHODS = {
    "npo": (NPO, {}),
    "npo_kl": (NPO, {"retain_loss": "kl"}),
    "npo_states": (NPO, {"retain_loss": "states"}),
    "undial_kl": (UNDIAL, {"retain_loss": "kl"}),
    "rmu": (RMU, {}),
}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_its_losses_and_gradients_are_those_against_the_frozen_model(method, tuning):
    kind, settings = METHODS[method]
    plan = tiny.step_rows(1)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, tuning=tuning)
    with torch.no_grad():  # somewhere else than before unlearning
        for p in engine._parameters:
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    found = []
    for reference in ("auto", "frozen"):
        config = kind.Config(reference=reference, **settings)
        trainer = tiny.assemble(
            kind, config, engine, tiny.language_model(), plan, optimizer=optimizer
        )
        engine.model.tokens_per_micro_batch = 40
        batches = trainer.micro_batches(plan[0], 1)
        for name in ("forget", "retain"):
            loss = trainer._objective(name)
            read = [batch[name] for batch in batches if name in batch]
            thunks = [lambda rows=rows, loss=loss: loss(rows) for rows in read]
            found.append((sum(t().item() for t in thunks), engine.gradient(thunks)))
    for (mine, gradient), (theirs, right) in zip(found[:2], found[2:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
        assert float((gradient - right).norm()) <= 1e-5 * float(right.norm())


def test_each_row_is_read_once_and_no_step_reads_the_model_before():
    plan = tiny.step_rows(3, n=4)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine, before = tiny.local_engine(optimizer), tiny.language_model()
    now, then = reads_of(engine.model), reads_of(before)
    trainer = tiny.trainer(engine, before, [*plan, *plan], method="npo_kl", optimizer=optimizer)
    assert (sum(now), sum(then)) == (0, 3 * (4 + 4) + 1)  # one tells that nothing is capped
    then.clear()
    tiny.train(trainer, plan, tokens=1000)
    assert (sum(now), sum(then)) == (3 * (4 + 4), 0)


def test_only_rows_that_the_steps_draw_are_read():
    sets = {"forget": tiny.rows(6, name="f"), "retain": tiny.rows(50, name="r")}
    sampler = ForgetRetainSampler(sets, batch_size=4, seed=3)
    for steps in (1, 2, 3, 20):
        read: dict[str, set[str]] = {"forget": set(), "retain": set()}
        for step in range(steps):
            for name, rows in sampler[step].items():
                read[name] |= {row.id for row in rows}
        drawn = sampler.drawn(steps)
        right = {name: [row for row in rows if row.id in read[name]] for name, rows in sets.items()}
        assert drawn == right


# ---- on disk -------------------------------------------------------------------------------------


def of(model: LanguageModel, rows: list[Row], folder: Path, cache: Path | None = None) -> bytes:
    """The file of a run's reference."""
    there = (folder / "log_probs.safetensors").is_file()
    read = reads_of(model)
    found = CachedReference.build(model, {"log_probs": rows}, folder=folder, cache=cache)
    assert found.taken == (() if read or there else ("log_probs",))
    assert [path.name for path in folder.iterdir()] == ["log_probs.safetensors"]
    return (folder / "log_probs.safetensors").read_bytes()


def test_a_resumed_run_finds_the_numbers_of_its_first_start(tmp_path):
    model, batch = tiny.language_model(), Rows.pack(ROWS)
    first, read = cached(model, folder=tmp_path), reads_of(model)
    again = cached(model, folder=tmp_path)
    assert read == []
    for mine, theirs in zip(whole(again, batch), whole(first, batch), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        ROWS[::-1],
        [Row("other", ROWS[0].input_ids, ROWS[0].weights), *ROWS[1:]],
        [Row(ROWS[0].id, (3, *ROWS[0].input_ids[1:]), ROWS[0].weights), *ROWS[1:]],
    ],
)
def test_the_numbers_of_other_rows_are_refused(tmp_path, rows):
    of(tiny.language_model(), ROWS, tmp_path)
    with pytest.raises(CheckpointError, match="holds the reference of other rows or weights"):
        of(tiny.language_model(), rows, tmp_path)


def nudged() -> LanguageModel:
    """The tiny model with the last bit of one weight changed."""
    model = tiny.language_model()
    weight = model.module.model.layers[1].mlp.up_proj.weight.data
    weight.view(torch.int32)[3, 5] ^= 1
    return model


def altered(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> LanguageModel:
    """The tiny model with one parameter of its last block changed."""
    model = tiny.language_model()
    weight = model.module.model.layers[1].get_parameter(name).data
    weight.copy_(change(weight.clone()))
    return model


OTHERS: dict[str, Callable[[], LanguageModel]] = {
    "weights": nudged,
    "signs": lambda: altered("mlp.up_proj.weight", torch.neg),
    "order": lambda: altered("mlp.up_proj.weight", lambda weight: weight.flip(1)),
    "a constant": lambda: altered("input_layernorm.weight", lambda weight: 2 * weight),
    "precision": lambda: _cast(tiny.language_model()),
    "settings": lambda: tiny.language_model(rms_norm_eps=1e-4),
}


def _cast(model: LanguageModel) -> LanguageModel:
    model.cast(torch.bfloat16)
    return model


@pytest.mark.parametrize("other", OTHERS)
def test_the_numbers_of_another_model_are_refused_and_not_shared(tmp_path, other):
    run, cache = tmp_path / "run", tmp_path / "cache"
    of(tiny.language_model(), ROWS, run, cache)
    with pytest.raises(CheckpointError, match="holds the reference of other rows or weights"):
        of(OTHERS[other](), ROWS, run, cache)
    of(OTHERS[other](), ROWS, tmp_path / "other", cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("tuning", ["full", "layers", "lora"])
def test_another_run_with_the_same_weights_and_rows_reads_nothing(tmp_path, tuning):
    cache = tmp_path / "cache"
    first = of(tiny.language_model(), ROWS, tmp_path / "first", cache)
    model = tiny.language_model(tuning=tuning)
    read = reads_of(model)
    assert of(model, ROWS, tmp_path / "second", cache) == first
    assert read == []


def test_a_run_that_would_read_other_bits_does_not_take_those_of_another(tmp_path):
    cache, batch, model = tmp_path / "cache", Rows.pack(ROWS), tiny.language_model()
    cached(model, folder=tmp_path / "a", cache=cache)
    model.tokens_per_micro_batch = 20
    right, read = whole(cached(model), batch), reads_of(model)
    mine = whole(cached(model, folder=tmp_path / "b", cache=cache), batch)
    assert len(read) > 3
    assert all(torch.equal(a, b) for a, b in zip(mine, right, strict=True))


def test_without_the_cache_a_run_still_has_its_numbers(tmp_path):
    cache, run, model = tmp_path / "cache", tmp_path / "run", tiny.language_model()
    first, read = of(model, ROWS, run, cache), reads_of(model)
    (shared,) = cache.iterdir()
    assert shared.samefile(run / "log_probs.safetensors")
    shared.unlink()
    assert of(model, ROWS, run, cache) == first
    assert read == []


def test_a_torn_file_is_refused_in_a_run_and_made_anew_in_the_cache(tmp_path, capsys):
    cache, run = tmp_path / "cache", tmp_path / "run"
    first = of(tiny.language_model(), ROWS, run, cache)
    file = run / "log_probs.safetensors"
    file.unlink()
    file.write_bytes(first[:-4])
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*\); remove it"):
        of(tiny.language_model(), ROWS, run, cache)
    (shared,) = cache.iterdir()
    shared.write_bytes(b"none of ours")
    assert of(tiny.language_model(), ROWS, tmp_path / "other", cache) == first
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.read_bytes() for path in cache.iterdir()] == [first]


@pytest.mark.parametrize("cache", ["file/folder", "a name that is too long" * 20])
def test_a_run_goes_on_where_nothing_can_be_shared(tmp_path, capsys, cache):
    (tmp_path / "file").write_text("a file, not a folder")
    of(tiny.language_model(), ROWS, tmp_path / "run", tmp_path / cache)
    told = capsys.readouterr().err
    assert told.startswith("reference: not kept for other runs in ")
    assert told.count("\n") == 1


def test_a_reference_that_cannot_be_written_leaves_the_model_as_it_was(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    model = tiny.language_model()
    model.module.train()
    with pytest.raises(
        CheckpointError, match=r"^the reference could not be written to .*$"
    ) as told:
        cached(model, folder=tmp_path / "file")
    assert told.tb is not None  # whose frames keep what was left half way
    assert model.module.training


def test_a_disk_without_room_is_told_in_one_line_before_anything_is_written(tmp_path):
    found = iter([[(0, torch.zeros(2, 32))]])
    with pytest.raises(CheckpointError, match=r"^.* needs 119209\.3 GiB in .* GiB are free; .*$"):
        write(found, 10**12, tmp_path / "states.safetensors", "key")
    assert list(tmp_path.iterdir()) == []


def test_a_large_file_is_announced(tmp_path, capsys):
    found = iter([[(0, torch.zeros(1, 2**16))]])
    write(found, 1200, tmp_path / "states.safetensors", "key")
    assert capsys.readouterr().err.startswith("reference: 300.0 MiB of the model before")
    assert (tmp_path / "states.safetensors").stat().st_blocks * 512 < 2**20  # a file of holes


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", noted)
    write(iter([[(0, torch.zeros(2, 32))]]), 2, tmp_path / "states.safetensors", "key")
    assert synced == ["states.partial"]


def test_other_preferred_answers_are_other_rows(tmp_path):
    first, second = tiny.pairs(2, name="pairs"), tiny.pairs(2, name="pairs")
    second[0] = replace(second[0], preferred=replace(second[1].preferred, id=first[0].preferred.id))
    of(tiny.language_model(), first, tmp_path)
    with pytest.raises(CheckpointError, match="holds the reference of other rows"):
        of(tiny.language_model(), second, tmp_path)


# ---- LoRA: the reference is the model with its adapters off --------------------------------------


def frozen_logits(model: LanguageModel, batch: Rows) -> torch.Tensor:
    return FrozenReference(model).logits_of(batch)(slice(None))


def test_before_training_a_lora_model_is_its_own_reference_bit_for_bit():
    model, plain = tiny.language_model(tuning="lora"), tiny.language_model()
    batch = Rows.pack(ROWS)
    with plain.evaluating():
        right = plain.logits(batch)
    assert torch.equal(frozen_logits(model, batch), right)
    assert torch.equal(model.logits(batch), right)


def test_after_training_a_lora_models_reference_is_still_the_model_before():
    plan = tiny.step_rows(3)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer, tuning="lora")
    trainer = tiny.trainer(
        engine, engine.model, plan, method="npo_kl", optimizer=optimizer, reference="frozen"
    )
    tiny.train(trainer, plan, tokens=30)
    batch, plain = Rows.pack(ROWS), tiny.language_model()
    with plain.evaluating():
        right = plain.logits(batch)
    assert torch.equal(trainer.reference.logits_of(batch)(slice(None)), right)
    assert (engine.model.logits(batch) - right).abs().max() > 1e-3


def test_the_reference_is_read_without_dropout_and_training_goes_on_with_it():
    model = tiny.language_model(attention_dropout=0.5)
    model.module.train()
    batch, still = Rows.pack(ROWS), tiny.language_model()
    with still.evaluating():
        right = still.logits(batch)
    assert torch.equal(frozen_logits(model, batch), right)
    assert model.module.training
    assert not torch.allclose(model.logits(batch), right)
