"""What every method promises, alone and with parts: one table, found in configs/.

A new method or part is tested by the file it has in configs/. Which compositions are tried, and how
they are built, is in `compositions.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from compositions import (
    ALL,
    CONFIGS,
    EACH,
    EVERY_PART,
    METHODS,
    NOT_INSTALLED,
    PRODUCT,
    SELECTED,
    Composition,
    Weights,
    build,
    objectives,
    part,
    plan_of,
    sensible,
    settings,
)
from torch.nn.functional import one_hot

from framework import ConfigError, UnlearningTrainer
from framework.checkpoint import Checkpoints
from framework.config import choices
from framework.data import Row, Rows, StepTotals
from framework.trainer import Batches

Cut = Callable[[UnlearningTrainer, Mapping[str, Sequence[Row]]], Batches]

in_full = pytest.mark.parametrize("composition", PRODUCT, ids="-".join)
every_composition = pytest.mark.parametrize("composition", EACH, ids="-".join)
every_method_selected = pytest.mark.parametrize(
    "composition", [*EACH, *(c for c in SELECTED if c not in EACH)], ids="-".join
)


def trained(
    composition: Composition,
    plan: Sequence[Mapping[str, Sequence[Row]]],
    cut: Cut,
    *overrides: str,
) -> Weights:
    """The weights after one step on each of the plan's, whose rows `cut` cuts up."""
    trainer = build(composition, plan, *overrides)
    before = trainer.engine.master_weights()
    for step in plan:
        trainer.step(cut(trainer, step), learning_rate=trainer.optimizer.peak)
    trainer.finish()
    after = trainer.engine.master_weights()
    assert apart(before, after) > 1e-4, "the steps moved nothing"
    return after


@cache
def of_pieces(composition: Composition, size: int) -> Weights:
    """The weights after three steps on eight rows, `size` of them at a time."""
    return trained(composition, plan_of(composition, 3, n=8), pieces(size))


def apart(a: Weights, b: Weights) -> float:
    """The largest difference between two models' weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def pieces(size: int) -> Cut:
    """Micro-batches of `size` rows of one objective."""

    def cut(trainer: UnlearningTrainer, step: Mapping[str, Sequence[Row]]) -> Batches:
        return [
            {name: Rows.pack(step[name][start : start + size], totals=StepTotals.of(step[name]))}
            for name in trainer.objectives
            for start in range(0, len(step[name]), size)
        ]

    return cut


def as_run(tokens: int) -> Cut:
    """Micro-batches of so many tokens, as a run has them."""

    def cut(trainer: UnlearningTrainer, step: Mapping[str, Sequence[Row]]) -> Batches:
        trainer.model.tokens_per_micro_batch = tokens
        return trainer.micro_batches(step, trainer.steps_done)

    return cut


# ---- every method, with every part ---------------------------------------------------------------


@in_full
def test_it_is_built_from_its_configs_alone(composition):
    config = settings(composition)
    trainer = build(composition, plan_of(composition, 1))
    assert config.trainer["class"].startswith("trainers.")
    assert type(trainer).__module__.startswith("trainers.")
    for group, found in {
        "perturbation": trainer.perturbation,
        "averaging": trainer.averaging,
        "optimizer": trainer.optimizer,
    }.items():
        asked, _ = part(group, config[group].name)
        assert type(found) is (type(None) if asked is None else asked)
    asked, _ = part("weighting", composition[1])
    assert asked is None or type(trainer.weighting) is asked
    assert (trainer.automatic is None) == (config.optimizer.automatic_every == 0)


@cache
def target() -> Weights:
    """The weights of a model that has half learned all rows of `step_rows(1, n=8)`."""
    (step,) = tiny.step_rows(1, n=8)
    plan = [{"retain": [*step["forget"], *step["retain"]]}] * 12
    trainer = build(("finetune", "none", "none"), plan, "optimizer=adamw", rate=1e-2)
    tiny.train(trainer, plan, tokens=1000)
    return trainer.engine.state_dict()


@every_method_selected
def test_its_losses_fall(composition):
    plan = plan_of(composition, 1, n=8) * 6
    weighs, _ = part("weighting", composition[1])
    far = weighs and weighs.needs_losses  # from its level: nothing has been learned yet
    if far:
        trainer = build(composition, plan, rate=0.02)
    else:
        trainer = build(composition, plan, "optimizer=adamw", rate=1e-3, knows=target())
    answers = tiny.packed(plan[0]["forget"])
    known = trainer.model.log_probs(answers).mean().item()
    lines = []
    for step in plan:
        tiny.train(trainer, [step], tokens=1000)
        lines.append(trainer.metrics())
    first, last = lines[0], lines[-1]
    names = trainer.objectives
    if trainer.surrogate:  # it promises what its gradient does, not what its value does
        assert trainer.model.log_probs(answers).mean().item() < known - 1e-3
    elif trainer.weighting.needs_gram:  # in favour of the forget loss; how else, see below
        assert last["train/forget/loss"] < first["train/forget/loss"] - 1e-3
    elif trainer.weighting.needs_losses:  # far above its level, the retain loss comes first
        assert last["train/retain/loss"] < first["train/retain/loss"] - 1e-3
    else:
        fixed = {name: first[f"train/{name}/weight"] for name in names}
        assert fixed == {name: last[f"train/{name}/weight"] for name in names}
        totals = [sum(fixed[n] * line[f"train/{n}/loss"] for n in names) for line in (first, last)]
        assert totals[1] < totals[0] - 1e-3


@every_composition
def test_one_micro_batch_of_eight_rows_is_four_of_two(composition):
    assert apart(of_pieces(composition, 8), of_pieces(composition, 2)) <= 1e-6


@every_composition
@pytest.mark.parametrize("tokens", [1000, 60])
def test_what_a_run_reads_at_once_gives_what_it_gives_apart(composition, tokens):
    plan = plan_of(composition, 3, n=8)
    assert apart(of_pieces(composition, 8), trained(composition, plan, as_run(tokens))) <= 1e-6


@every_composition
def test_the_order_of_rows_in_a_micro_batch_does_not_matter(composition):
    plan = plan_of(composition, 3, n=8)
    shuffled = [
        {name: [rows[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)] for name, rows in step.items()}
        for step in plan
    ]
    forwards = of_pieces(composition, 8)
    assert apart(forwards, trained(composition, shuffled, pieces(8))) <= 1e-6


@every_composition
def test_the_number_of_ranks_does_not_matter(composition):
    plan = plan_of(composition, 3)  # five rows: three ranks hold one or two each
    runs = []
    for ranks in (1, 2, 3):
        trainer = build(composition, plan)
        tiny.train(trainer, plan, tokens=40, as_ranks=ranks)
        trainer.finish()
        runs.append(trainer.engine.master_weights())
    assert apart(runs[0], runs[1]) <= 1e-6
    assert apart(runs[0], runs[2]) <= 1e-6


@every_composition
def test_ranks_without_rows_change_nothing(composition):
    plan = plan_of(composition, 2, n=2)
    runs = []
    for ranks in (1, 5):
        trainer = build(composition, plan)
        tiny.train(trainer, plan, tokens=1000, as_ranks=ranks)
        trainer.finish()
        runs.append(trainer.engine.master_weights())
    assert apart(*runs) <= 1e-6


@in_full
def test_four_steps_are_two_steps_a_checkpoint_and_two_steps(composition, tmp_path):
    plan = plan_of(composition, 4)
    whole, begun, resumed = (
        build(composition, plan, "optimizer=adamw", rate=1e-3) for _ in range(3)
    )
    tiny.train(whole, plan, tokens=40)
    tiny.train(begun, plan[:2], tokens=40)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(checkpoints.save(begun.engine, begun), resumed.engine, resumed)
    tiny.train(resumed, plan[2:], tokens=40)
    mine, theirs = whole.metrics(), resumed.metrics()
    assert {n: v for n, v in mine.items() if "memory" not in n} == {
        n: v for n, v in theirs.items() if "memory" not in n
    }
    assert whole.state_dict() == resumed.state_dict()
    assert apart(whole.engine.master_weights(), resumed.engine.master_weights()) == 0
    assert apart(begun.engine.master_weights(), resumed.engine.master_weights()) > 0
    for trainer in (whole, resumed):
        trainer.finish()
    assert apart(whole.engine.master_weights(), resumed.engine.master_weights()) == 0


SIZES = {
    "sam": "rho",
    "random_smoothing": "sigma",
    "gradient_penalty": "penalty",
    "curvature": "penalty",
}


@pytest.mark.parametrize("composition", [c for c in EACH if c[2] != "none"], ids="-".join)
def test_a_perturbation_of_size_zero_is_none_bit_for_bit(composition):
    plan = plan_of(composition, 3)
    each = "trainer.compare_every=1"  # then both add up one objective's gradient at a time
    zero = f"perturbation.{SIZES[composition[2]]}=0"
    plain = trained((*composition[:2], "none", *composition[3:]), plan, pieces(2), each)
    assert apart(plain, trained(composition, plan, pieces(2), each, zero)) == 0


@every_composition
def test_comparing_the_gradients_changes_the_update_by_rounding_only(composition):
    plan = plan_of(composition, 3)
    never, always = (
        trained(composition, plan, pieces(2), f"trainer.compare_every={every}") for every in (0, 1)
    )
    assert apart(never, always) <= 1e-6


@every_composition
def test_every_number_on_record_is_of_the_whole_step(composition):
    plan = plan_of(composition, 1, n=8)
    whole, cut = build(composition, plan), build(composition, plan)
    for trainer, size in ((whole, 8), (cut, 3)):
        trainer.step(pieces(size)(trainer, plan[0]), learning_rate=0.1)
    right, found = whole.metrics(), cut.metrics()
    assert right.keys() == found.keys()
    for name in right.keys() - {"train/peak_memory_gib"}:
        assert found[name] == pytest.approx(right[name], rel=2e-6, abs=2e-6), name


@pytest.mark.parametrize("composition", [c for c in ALL if not sensible(c)], ids="-".join)
def test_what_does_not_go_together_is_refused_in_one_line(composition):
    with pytest.raises(ConfigError, match=r"set (weighting|perturbation)=none") as refused:
        build(composition, plan_of(composition, 1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("choice", sorted(NOT_INSTALLED))
def test_what_needs_a_library_that_is_not_there_says_how_to_get_it(choice, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # Python's own word for "not there"
    with pytest.raises(ConfigError, match="not installed; type pip install") as refused:
        build((EVERY_PART, "none", "none", choice), tiny.step_rows(1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if len(objectives(m)) > 1 and not part("trainer", m)[0].surrogate],
)
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_under_blur_the_forget_loss_falls_at_the_rate_gamma(method, gamma):
    # f(w - eta u) - f(w) = -eta <u, g_f> + O(eta^2), <u, g_f> = gamma |g_f|^2: the first order is
    # half the difference of the steps +eta and -eta, up to O(eta^3)
    plan = plan_of((method, "blur", "none"), 1, n=8)
    changes = []
    for sign in (1, -1):
        trainer = build((method, "blur", "none"), plan, f"weighting.gamma={gamma}")
        batches = pieces(8)(trainer, plan[0])
        forget = batches[0]["forget"]
        norm = float(trainer.engine.gradient([lambda t=trainer, b=forget: t.forget_loss(b)]).norm())
        eta = sign * 2e-3 / (1 + norm)  # steps of about the same length for every method
        trainer.step(batches, learning_rate=eta)
        before = trainer.metrics()
        after = trainer.forget_loss(forget).item()
        changes.append(after - before["train/forget/loss"])
    slope = (changes[0] - changes[1]) / (2 * abs(eta))
    assert slope == pytest.approx(-gamma * before["train/forget/gradient_norm"] ** 2, rel=0.02)


# ---- packed rows against padded rows, written out with transformers alone ------------------------


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention mask, weights of targets) of rows padded to twice the longest."""
    longest = 2 * max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, weights = torch.zeros_like(ids), torch.zeros(len(rows), longest)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row.input_ids)
        mask[b, : len(row)] = 1
        weights[b, : len(row)] = torch.tensor(row.weights)
    return ids, mask, weights


def padded_log_probs(module: torch.nn.Module, rows: Sequence[Row]) -> tuple[torch.Tensor, ...]:
    """([B, T - 1] log-probability of each next token, [B, T - 1, V] of all, [B, T - 1] weights)."""
    ids, mask, weights = padded(rows)
    table = module(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    return table.gather(-1, ids[:, 1:, None])[..., 0], table, weights[:, 1:]


def token_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (values * weights).sum() / weights.sum()


def nll(module: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    taken, _, weights = padded_log_probs(module, rows)
    return token_mean(-taken, weights)


def kl(module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)
    with torch.no_grad():
        _, before, _ = padded_log_probs(reference, rows)
    return token_mean((before.exp() * (before - table)).sum(-1), weights)


def padded_logits(module: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """[B, T, V] logits, of padding too."""
    ids, mask, _ = padded(rows)
    logits: torch.Tensor = module(input_ids=ids, attention_mask=mask).logits
    return logits


def kl_of_all_positions(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    with torch.no_grad():
        before = padded_logits(reference, rows).log_softmax(-1)
    now = padded_logits(module, rows).log_softmax(-1)
    return token_mean((before.exp() * (before - now)).sum(-1), padded(rows)[1])


def kl_of_raw_logits(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    with torch.no_grad():
        before = padded_logits(reference, rows)
    terms = (before.exp() * (before - padded_logits(module, rows))).sum(-1)
    return (terms * padded(rows)[1]).sum() / len(rows)


def npo_muse(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    with torch.no_grad():
        before = padded_logits(reference, rows)
    below = before - padded_logits(module, rows)
    return token_mean((2 / 0.1 * torch.log1p((-0.1 * below).exp())).mean(-1), padded(rows)[1])


def npo(module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    taken, _, weights = padded_log_probs(module, rows)
    with torch.no_grad():
        before, _, _ = padded_log_probs(reference, rows)
    log_ratio = ((taken - before) * weights).sum(-1)
    return (2 / 0.1 * (1 + (0.1 * log_ratio).exp()).log()).mean()


def simnpo(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    taken, _, weights = padded_log_probs(module, rows)
    per_token = (taken * weights).sum(-1) / weights.sum(-1)
    return (2 / 4.5 * torch.log1p((4.5 * per_token).exp())).mean()


def wga(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    taken, _, weights = padded_log_probs(module, rows)
    return token_mean(taken.exp().detach() * taken, weights)


def satimp(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    taken, _, weights = padded_log_probs(module, rows)
    p = taken.exp().detach()
    return token_mean(p**5 * (1 - p) * taken, weights)


def ceu(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)
    others = 1 - one_hot(padded(rows)[0][:, 1:], table.shape[-1])
    q = table.detach().exp() * others
    return token_mean(-(q / q.sum(-1, keepdim=True) * table).sum(-1), weights)


def undial(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)
    with torch.no_grad():
        _, before, _ = padded_log_probs(reference, rows)
    q = before.exp() * torch.exp(-10.0 * one_hot(padded(rows)[0][:, 1:], table.shape[-1]))
    return token_mean(-(q / q.sum(-1, keepdim=True) * table).sum(-1), weights)


def undial_with_prompts(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    ids, mask, weights = padded(rows)
    labels = torch.where(weights > 0, ids, -100)[:, 1:]
    with torch.no_grad():
        before = padded_logits(reference, rows)[:, :-1]
    lowered = one_hot(labels % before.shape[-1], before.shape[-1])
    q = (before - 10.0 * lowered).softmax(-1)
    crossed = -(q * padded_logits(module, rows)[:, :-1].log_softmax(-1)).sum(-1)
    return token_mean(crossed, mask[:, 1:])


def logit_margin_of_answers_own_positions(
    module: torch.nn.Module, _: Any, rows: Sequence[Row]
) -> torch.Tensor:
    logits = padded_logits(module, rows)
    return token_mean((logits.max(-1).values - logits.mean(-1)) ** 2, padded(rows)[2])


def logit_margin(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)  # log p is z but for a constant
    return token_mean((table.max(-1).values - table.mean(-1)) ** 2, weights)


def max_entropy(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)
    return token_mean((table.exp() * (table + math.log(table.shape[-1]))).sum(-1), weights)


def uniform(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    _, table, weights = padded_log_probs(module, rows)
    return token_mean(-table.mean(-1), weights)


def padded_states(module: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """[B, T - 1, D] output of the first of two blocks at all tokens but the last."""
    ids, mask, _ = padded(rows)
    output = module(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[1][:, :-1]


def state_distance(states: torch.Tensor, target: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    weights = padded(rows)[2][:, 1:]
    squares = ((states - target) ** 2).mean(-1) * weights
    return (squares.sum(-1) / weights.sum(-1)).mean()


def rmu(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    u = torch.rand(32, generator=torch.Generator().manual_seed(0))
    return state_distance(padded_states(module, rows), 2 * u / u.norm(), rows)


def kept_states(
    module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]
) -> torch.Tensor:
    with torch.no_grad():
        before = padded_states(reference, rows)
    return state_distance(padded_states(module, rows), before, rows)


def dpo(module: torch.nn.Module, reference: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    log_ratios = []
    for answers in ([row.preferred for row in rows], rows):
        taken, _, weights = padded_log_probs(module, answers)
        with torch.no_grad():
            before, _, _ = padded_log_probs(reference, answers)
        log_ratios.append(((taken - before) * weights).sum(-1))
    preferred, given = log_ratios
    return (2 / 0.1 * (1 + (0.1 * (given - preferred)).exp()).log()).mean()


def answer_probability(module: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """[B] mean over the answer's tokens of their probability."""
    taken, _, weights = padded_log_probs(module, rows)
    return (taken.exp() * weights).sum(-1) / weights.sum(-1)


def flat(module: torch.nn.Module, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    preferred = answer_probability(module, [row.preferred for row in rows])
    return preferred, answer_probability(module, rows)


def flat_total_variation(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    preferred, given = flat(module, rows)
    return (0.5 * torch.tanh(given) - 0.5 * torch.tanh(preferred)).mean()


def flat_kl(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    preferred, given = flat(module, rows)
    return (torch.exp(given - 1) - preferred).mean()


def flat_jensen_shannon(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    preferred, given = flat(module, rows)
    good = -torch.log(1 + torch.exp(-preferred)) + math.log(2)  # g*, then f*(g*)
    bad = given + torch.log(1 + torch.exp(-given)) - math.log(2)
    return (bad - good).mean()


def flat_pearson(module: torch.nn.Module, _: Any, rows: Sequence[Row]) -> torch.Tensor:
    preferred, given = flat(module, rows)
    return (given**2 / 4 + given - preferred).mean()


WrittenOut = Callable[[torch.nn.Module, torch.nn.Module, Sequence[Row]], torch.Tensor]
PLAIN: dict[str, WrittenOut] = {
    "forget": lambda m, _, rows: -nll(m, rows),
    "retain": lambda m, _, rows: nll(m, rows),
}
WRITTEN_OUT: dict[str, dict[str, WrittenOut]] = {  # by method, or method and override
    "finetune": {"retain": PLAIN["retain"]},
    "grad_ascent": {"forget": PLAIN["forget"]},
    "grad_diff": PLAIN,
    "npo": PLAIN | {"forget": npo},
    "npo trainer.retain_loss=kl": {"forget": npo, "retain": kl},
    "npo trainer.retain_loss=kl trainer.kl_parity=all_positions": {
        "forget": npo,
        "retain": kl_of_all_positions,
    },
    "npo trainer.retain_loss=kl trainer.kl_parity=raw_logits": {
        "forget": npo,
        "retain": kl_of_raw_logits,
    },
    "npo_muse": PLAIN | {"forget": npo_muse},
    "npo trainer.retain_loss=states": {"forget": npo, "retain": kept_states},
    "simnpo": PLAIN | {"forget": simnpo},
    "wga": PLAIN | {"forget": wga},
    "satimp": PLAIN | {"forget": satimp},
    "ceu": {"forget": ceu},
    "undial": {"forget": undial},
    "undial trainer.prompt_parity=true": {"forget": undial_with_prompts},
    "logit_margin": PLAIN | {"forget": logit_margin},
    "logit_margin trainer.mask_parity=true": PLAIN
    | {"forget": logit_margin_of_answers_own_positions},
    "max_entropy": PLAIN | {"forget": max_entropy},
    "rmu": {"forget": rmu, "retain": kept_states},
    "uld": {"forget": PLAIN["retain"], "retain": uniform},
    "dpo": PLAIN | {"forget": dpo},
    "altpo": PLAIN | {"forget": dpo},
    "flat": {"forget": flat_total_variation},
    "flat trainer.divergence=kl": {"forget": flat_kl},
    "flat trainer.divergence=jensen_shannon": {"forget": flat_jensen_shannon},
    "flat trainer.divergence=pearson": {"forget": flat_pearson},
}


def test_every_method_is_written_out():
    assert {name.split()[0] for name in WRITTEN_OUT} == set(METHODS)


@pytest.mark.parametrize("method", WRITTEN_OUT)
@pytest.mark.parametrize("size", [8, 3])
def test_packed_rows_give_the_losses_and_the_gradient_of_padded_rows(method, size):
    name, *overrides = method.split()
    (step,) = plan = plan_of((name, "none", "none"), 1, n=8)
    # the trained model is far from its reference, which is made of seed 0
    trainer = build((name, "none", "none"), plan, *overrides, model_seed=1)
    plain, reference = tiny.module(seed=1), tiny.module(seed=0)
    assert WRITTEN_OUT[method].keys() == set(trainer.objectives)
    for objective, formula in WRITTEN_OUT[method].items():
        right = formula(plain, reference, step[objective])
        loss_of = {"forget": trainer.forget_loss, "retain": trainer.retain_loss}[objective]
        cut = pieces(size)(trainer, step)
        batches = [batch[objective] for batch in cut if objective in batch]
        found = sum(loss_of(batch).item() for batch in batches)
        assert found == pytest.approx(right.item(), rel=2e-6, abs=1e-7)
        gradient = trainer.engine.gradient([lambda b=b, f=loss_of: f(b) for b in batches])
        plain.zero_grad()
        right.backward()
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in plain.parameters()]
        size_of_gradient = float(gradient.norm())
        differences = zip(gradient.shards, (g.reshape(-1) for g in flat), strict=True)
        assert max(float((g - p).abs().max()) for g, p in differences) <= 2e-6 * size_of_gradient


# ---- the files in configs/ -----------------------------------------------------------------------

GROUPS = (
    *("trainer", "weighting", "perturbation", "selection", "averaging"),
    *("optimizer", "tuning", "zero"),
)
FILES = [(group, choice) for group in GROUPS for choice in choices(CONFIGS, group)]


@pytest.mark.parametrize(("group", "choice"), FILES, ids=[f"{g}={c}" for g, c in FILES])
def test_a_config_begins_with_what_it_is_and_how_to_run_it(group, choice):
    lines = (CONFIGS / group / f"{choice}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments  # all on top
    assert "-m launch.train" in "\n".join(comments)
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_cites_where_it_was_published(method):
    if method != "finetune":
        assert "arXiv:" in (CONFIGS / "trainer" / f"{method}.yaml").read_text()
