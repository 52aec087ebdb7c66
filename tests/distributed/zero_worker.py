"""Runs cases under ZeRO in one process group and compares each with LocalEngine.

A case is a dict (see `Case`): a composition of what is in configs/, or made of tiny.py's tables,
which hold what no config says. The result is a dict of what was measured (see `measure`).
`worker.py` starts both ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import compositions
import tiny
import torch
from families import family

from framework import (
    ConfigError,
    LanguageModel,
    LocalEngine,
    Row,
    UnlearningTrainer,
    distributed,
    head,
    packing_check,
    shared,
)
from framework.averaging import WeightAveraging
from framework.combined import CombinedModel
from framework.data import Rows, idle
from framework.engine import Engine
from framework.method import reference_needed
from framework.optimizers import Optimizer
from framework.parts import Plan
from framework.recomputation import Recomputed, recompute
from framework.reference import Asked, CachedReference
from framework.sampling import Sampling
from framework.vectors import Vector
from framework.zero import PRIVATE, ZeroEngine, read_partitioned

STEPS = 3
ROWS = 5  # odd, so that two ranks hold unequal numbers of rows and tokens
WHOLE_STEP, SEVERAL = 1000, 30  # tokens per micro-batch: one micro-batch a rank, or several
PAIRS = [(" ".join(f"t{i}" for i in range(3, 5 + n)), f"t{20 + n} t{30 + n}") for n in range(7)]
PROMPTS = [prompt for prompt, _ in PAIRS]
NEW_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """One run of three steps under ZeRO."""

    stage: str
    method: str = "npo"
    weighting: str = "none"
    perturbation: str = "none"
    selection: str = "none"
    optimizer: str = "sgd"
    precision: str = "fp32"
    offload: str = "none"
    tuning: str = "full"
    tokens: int = SEVERAL
    clip: float | None = None
    tied: bool = False
    compare_every: int = 0
    evaluate: bool = False
    averaged: bool = False
    automatic_every: int = 0
    chunked: bool = False
    """Whether the output head's logits come in chunks under ZeRO; in one process they do not."""
    recomputed: Recomputed = False
    """What of the decoder blocks' activations is recomputed under ZeRO; in one process nothing."""
    composition: str = ""
    """As `compositions.Composition`, blanks between; says all but stage and tokens."""

    @property
    def steps_by(self) -> str:
        """The optimizer's name."""
        chosen = dict(word.split("=") for word in self.composition.split()[3:])
        return chosen.get("optimizer", self.optimizer)

    @property
    def name(self) -> str:
        """The case in one word, for test ids: what differs from the defaults."""
        if self.composition:
            return f"zero{self.stage}-configs-{self.composition.replace(' ', '-')}"
        chosen = asdict(self)
        words = [f"zero{self.stage}", self.method]
        for field in fields(self)[2:]:
            value = chosen[field.name]
            if value != field.default:
                plain = isinstance(value, str)
                words.append(value if plain else f"{field.name}={value}")
        return "-".join(words)


class Trained(NamedTuple):
    """What a run leaves: the weights, whole, the numbers of every step, the weighting's state."""

    weights: Mapping[str, torch.Tensor]
    metrics: list[dict[str, float]]
    evaluation: list[Any]
    weighting: dict[str, Any]


EngineOf = Callable[[LanguageModel, Optimizer], Engine]


def begun(
    case: Case, engine_of: EngineOf
) -> tuple[UnlearningTrainer, Sequence[Mapping[str, Sequence[Row]]]]:
    """The case's trainer before its first step, and the rows of each step."""
    if case.composition:
        composition = tuple(case.composition.split())
        plan = compositions.plan_of(composition, STEPS, ROWS)
        return compositions.build(composition, plan, engine=engine_of), plan
    pairs = tiny.METHODS[case.method][0].prefers
    plan = tiny.selected(
        tiny.step_rows(STEPS, ROWS, prefers=pairs), tiny.SELECTIONS[case.selection]()
    )
    optimizer = tiny.optimizer(case.optimizer, clip=case.clip, automatic_every=case.automatic_every)
    model = tiny.language_model(tied=case.tied, tuning=case.tuning)
    if case.recomputed:
        recompute(model.module, case.recomputed)
    engine = engine_of(model, optimizer)
    kind, settings = tiny.METHODS[case.method]
    needed = reference_needed(kind, kind.Config(**settings))  # type: ignore[arg-type]
    # what is kept is read off the trained model; whole, it is that model too, its adapters off
    own = case.tuning == "lora" or needed == "cached"
    averaging = WeightAveraging(WeightAveraging.Config(start=0.0, every=1))
    trainer = tiny.trainer(
        engine,
        engine.model if own else tiny.language_model(tied=case.tied),
        plan,
        method=case.method,
        weighting=tiny.WEIGHTINGS[case.weighting](),
        perturbation=tiny.PERTURBATIONS[case.perturbation](),
        averaging=averaging if case.averaged else None,
        optimizer=optimizer,
        compare_every=case.compare_every,
    )
    trainer.begin(Plan(steps=STEPS, steps_per_epoch=2))
    return trainer, plan


def run(case: Case, engine_of: EngineOf, *, as_ranks: int | None = None) -> tuple[Engine, Trained]:
    """Three steps of the case."""
    trainer, plan = begun(case, engine_of)
    engine = trainer.engine
    before = engine.master_weights()
    metrics, evaluation = [], []
    for step in plan:
        tiny.train(trainer, [step], tokens=case.tokens, as_ranks=as_ranks)
        metrics.append(trainer.metrics())
        if case.evaluate:
            evaluation.append(answers(engine.model))
    trainer.finish()
    after = engine.master_weights()
    assert all(torch.isfinite(w).all() for w in after.values())
    assert difference(before, after) > 1e-4, "the steps moved nothing"
    return engine, Trained(after, metrics, evaluation, trainer.weighting.state_dict())


def answers(model: LanguageModel) -> list[Any]:
    """What the model scores and says, as plain lists."""
    scores = [score.log_probs.tolist() for score in model.scores(PAIRS)]
    drawn = Sampling(temperature=1.0, seed=0, names=tuple(PROMPTS))
    greedy = model.generate(PROMPTS, NEW_TOKENS)
    return [scores, greedy + model.generate(PROMPTS, NEW_TOKENS, sampling=drawn)]


def together() -> dict[str, Any]:
    """What two models that answer as one score and say: on every rank, and as one process."""
    members = [tiny.language_model(seed=seed) for seed in (0, 1)]
    model = CombinedModel(members, lambda logits: logits[0] - logits[1])
    model.tokens_per_micro_batch = 20  # several batches, dealt out to the ranks
    ranks = distributed.all_gather_objects(answers(model))
    with distributed.alone():
        return {"ranks": ranks, "right": answers(model)}


def agreed() -> dict[str, Any]:
    """What the ranks do where one finds out something else than the others."""
    model, read = tiny.language_model(), packing_check.pack
    model.check_packing()
    before = model.shares_beginnings()
    if distributed.rank() == 1:  # whose kernel misses what rows share
        packing_check.pack = lambda *rows, **on: replace(read(*rows, **on), keys=None)
    model.check_packing()
    packing_check.pack = read
    cap = 2.0 if distributed.rank() == 1 else None
    capped = family("gemma3_text", head_dim=8, final_logit_softcapping=cap)
    try:
        CachedReference.build(tiny.wrapped(capped), {"logits": tiny.rows(3, name="capped")})
        said = ""
    except ConfigError as error:
        said = str(error)
    return {"ranks": distributed.all_gather_objects([before, model.shares_beginnings(), said])}


def in_shares(folder: Path) -> dict[str, Any]:
    """What a model scores and says that is only read, its weights divided, and how many are not."""
    model = tiny.language_model(hidden_size=128, intermediate_size=1024)  # 131,072: worth dividing
    model.tokens_per_micro_batch = 20
    whole = folder / f"whole-{distributed.rank()}"
    with distributed.alone():
        right, kept_whole = answers(model), kept(model, whole)
    read_partitioned(model, ZeroEngine.Config(stage="3"), "fp32")
    ranks = distributed.all_gather_objects(answers(model))
    reference = distributed.all_gather_objects([kept(model, folder / "shares"), kept_whole])
    divided = [n for n, p in model.module.named_parameters() if p.numel() == 0]
    model.forward.destroy()  # type: ignore[attr-defined] # DeepSpeed's
    return {"ranks": ranks, "right": right, "divided": divided, "reference": reference}


def of_all_kinds() -> dict[str, Any]:
    """What two ranks that divide each matrix read of packs scored in part, everywhere, at a token.

    How far it is from one process: log-probabilities, then weights as a share of their way.
    """
    # DeepSpeed keeps smaller matrices whole; of larger weights the steps are chaotic
    sizes = {"hidden_size": 512, "intermediate_size": 512, "initializer_range": 0.02}
    model, whole = (tiny.language_model(**sizes) for _ in range(2))
    optimizer = tiny.optimizer("sgd", clip=None)
    local = LocalEngine(LocalEngine.Config(), model=whole, optimizer=optimizer, precision="fp32")
    engine = ZeroEngine(
        ZeroEngine.Config(stage="3"), model=model, optimizer=optimizer, precision="fp32"
    )
    for each in (whole, model):
        each.check_packing()
    few, begun = tiny.rows(3, name="few"), tuple(range(3, 13))
    some, none = shared.pack(few), shared.pack([idle(few[0])])
    every = shared.pack([Row(str(k), (*begun, k), (0.0, *[1.0] * 10)) for k in range(20, 24)])
    assert len(none.scored) == 1 < len(some.scored) < len(some.input_ids)
    assert len(every.scored) > len(every.input_ids)
    plan = [(some, some)] * 2 + [(every, some), (some, every), (none, some), (every, none)]
    read, before = 0.0, local.master_weights()
    for mine in (packs[distributed.rank()] for packs in plan):
        with model.evaluating(), whole.evaluating():
            found, right = model.token_log_probs(mine), whole.token_log_probs(mine)
        read = max(read, float((found - right).abs().max()))
    for packs in plan:
        mine = packs[distributed.rank()]
        engine.step(engine.gradient([lambda mine=mine: model.token_log_probs(mine).sum()]), 1e-4)
        losses = [lambda rows=rows: whole.token_log_probs(rows).sum() for rows in packs]
        with distributed.alone():
            local.step(local.gradient(losses), 1e-4)
    after = local.master_weights()
    trained = difference(engine.master_weights(), after) / difference(before, after)
    engine.close()
    return {"narrow": model._narrows, "apart": distributed.all_gather_objects([read, trained])}


def kept(model: LanguageModel, folder: Path) -> dict[str, str]:
    """The files of a cached reference and what its losses read, hashed."""
    rows = tiny.rows(7, name="kept")
    kinds: tuple[Asked, ...] = ("log_probs", "logits", "states")
    reference = CachedReference.build(model, dict.fromkeys(kinds, rows), layer=1, folder=folder)
    batch = Rows.pack(rows[::-1])
    read = (reference.token_log_probs(batch), reference.logits_of(batch)(slice(3, 9)))
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    found |= {str(i): values.numpy().tobytes() for i, values in enumerate(read)}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between two models' weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def in_one_process(case: Case) -> Case:
    """The case as it is run in one process, every row in it: what is right.

    In fp32 the rows are cut into other micro-batches than the ranks', which must not matter. In
    bf16 each micro-batch's gradient is rounded, so there they are the ranks' own.
    """
    return replace(case, stage="0", offload="none", chunked=False, recomputed=False)


def right_of(cases: Sequence[Case]) -> dict[Case, Trained]:
    """What is right of each case; every rank works out its share, and all know all."""
    distinct = list(dict.fromkeys(map(in_one_process, cases)))
    mine = distinct[distributed.rank() :: distributed.world_size()]
    with distributed.alone():
        own = {case: local(case) for case in mine}
    compositions.plan_of.cache_clear()  # what ranks select together, none may have selected alone
    return {
        case: found for part in distributed.all_gather_objects(own) for case, found in part.items()
    }


def local(case: Case) -> Trained:
    """The case under LocalEngine."""

    def engine_of(model: LanguageModel, optimizer: Optimizer) -> LocalEngine:
        return LocalEngine(
            LocalEngine.Config(),
            model=model,
            optimizer=optimizer,
            precision=case.precision,  # type: ignore[arg-type]
        )

    print(case.name, "in one process", file=sys.stderr)  # noqa: T201
    return run(case, engine_of, as_ranks=2 if case.precision == "bf16" else None)[1]


def sharded(case: Case) -> tuple[ZeroEngine, Trained]:
    """The case under ZeRO."""

    def engine_of(model: LanguageModel, optimizer: Optimizer) -> ZeroEngine:
        return ZeroEngine(
            ZeroEngine.Config(stage=case.stage, offload=case.offload, bucket=20_000),  # type: ignore[arg-type]
            model=model,
            optimizer=optimizer,
            precision=case.precision,  # type: ignore[arg-type]
        )

    with in_chunks() if case.chunked else nullcontext():
        engine, found = run(case, engine_of)
    assert isinstance(engine, ZeroEngine)
    return engine, found


@contextmanager
def in_chunks() -> Iterator[None]:
    """Inside, of the head's logits a few tokens' are there at once, or a few of the vocabulary."""
    before = head.WHOLE, head.CHUNK, head.TOKENS
    head.WHOLE, head.CHUNK, head.TOKENS = 0, 5 * tiny.VOCABULARY, {"cpu": 1}
    try:
        yield
    finally:
        head.WHOLE, head.CHUNK, head.TOKENS = before


def measure(case: Case, right: Trained) -> dict[str, Any]:
    """Everything that the tests look at, the worst over the ranks."""
    engine, found = sharded(case)
    apart = torch.tensor(
        [difference(found.weights, right.weights), metrics_apart(found, right)],
        dtype=torch.float64,
    )
    weights, metrics = distributed.max_over_ranks(apart).tolist()
    result = {
        "weights": weights,
        "metrics": metrics,
        "shift": shift_and_restore(engine),
        "missing": missing(case, engine),
        "weighting": distributed.all_gather_objects(found.weighting),
        "right weighting": right.weighting,
    }
    if case.evaluate:
        everyone = distributed.all_gather_objects(found.evaluation)
        result["evaluation"] = {"right": right.evaluation, "ranks": everyone}
    engine.close()
    return result


def metrics_apart(found: Trained, right: Trained) -> float:
    """The largest difference between two runs' logged numbers, in units of `scale_of`."""
    apart = 0.0
    for mine, theirs in zip(found.metrics, right.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"train/peak_memory_gib"}:
            if not math.isfinite(theirs[name]):
                assert str(mine[name]) == str(theirs[name]), name
            else:
                apart = max(apart, abs(mine[name] - theirs[name]) / scale_of(name, theirs))
    return apart


def scale_of(name: str, metrics: Mapping[str, float]) -> float:
    """What a number's rounding is measured by: 1, or the number where it exceeds 1.

    A projection's weight is the cosine of two gradients, which is known to 1e-7 however small it
    is, times the other's length over its own: of that size is the least that can be told.
    """
    least = 1.0
    lengths = [metrics.get(f"train/{x}/gradient_norm", 0.0) for x in ("forget", "retain")]
    if name == "train/forget/weight" and all(lengths):
        least = max(least, lengths[1] / lengths[0])
    return max(least, abs(metrics[name]))


def shift_and_restore(engine: ZeroEngine) -> dict[str, Any]:
    """Fail to shift, shift twice, fail on one rank; look whether any bit differs from before."""
    batch = Rows.pack(tiny.rows(3, name="shift"))

    def gradient() -> Vector:
        return engine.gradient([lambda: engine.model.token_log_probs(batch).sum()])

    def state() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        with engine.model.evaluating():
            logits = engine.model.logits(batch)
        return engine.master_weights(), engine.state_dict(), logits

    masters, weights, logits = state()
    delta = gradient()
    delta.scale_(1 / delta.norm())
    cut = Vector([*delta.shards[:-1], delta.shards[-1][1:]], replicated=delta.replicated)
    failed = False
    try:
        with engine.shifted(cut):
            pass
    except RuntimeError:
        failed = all(map(torch.equal, weights.values(), engine.state_dict().values()))
    inside = torch.zeros(())
    with engine.shifted(delta * -3.0) as shift:
        again = engine.shift(delta)  # from where it is unshifted, not from where it is
        with engine.model.evaluating():
            inside = engine.model.logits(batch)
        gradient()
    with suppress(InterruptedError), engine.shifted(delta):
        if not distributed.is_main():
            raise InterruptedError
        distributed.barrier()
    if not distributed.is_main():
        distributed.barrier()  # so far this rank comes while the other is still inside
    engine.unshift()
    masters_now, weights_now, logits_now = state()
    return {
        "exact": bool(
            failed
            and torch.equal(logits, logits_now)
            and all(torch.equal(masters[n], masters_now[n]) for n in masters)
            and all(torch.equal(weights[n], weights_now[n]) for n in weights)
        ),
        "moved": float((inside - logits).abs().max()),
        "first": [float(shift.norm), float(shift.ratio), float(shift.cosine)],
        "second": [float(again.norm), float(again.ratio), float(again.cosine)],
    }


def missing(case: Case, engine: ZeroEngine) -> list[str]:
    """The private attributes that this layout rests on and that DeepSpeed's optimizer lacks."""
    optimizer = engine.deepspeed.optimizer
    if case.stage == "0":
        return []
    layout = "stage 3" if case.stage == "3" else "stages 1 and 2"
    return [name for name in PRIVATE[layout] if name not in dir(optimizer)]


def main(asked: Path, found: Path) -> None:
    """Run all cases; rank 0 writes the results after each one."""
    cases = [Case(**case) for case in json.loads(asked.read_text())]
    results: dict[str, Any] = {
        "combined": together(),
        "agreed": agreed(),
        "in_shares": in_shares(found.parent),
        "of_all_kinds": of_all_kinds(),
    }
    right = right_of(cases)
    for case in cases:
        print(case.name, file=sys.stderr)  # noqa: T201 - the last one is where it broke
        results[case.name] = measure(case, right[in_one_process(case)])
        if distributed.is_main():
            found.write_text(json.dumps(results))
