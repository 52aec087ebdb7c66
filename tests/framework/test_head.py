"""The output head in chunks against all logits at once: values, gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from families import family, language_model
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from framework import ConfigError, FrozenReference, LanguageModel, Row, Rows
from framework import head as head_file
from framework.head import Head
from framework.shared import pack
from launch.peak_bytes import peak_bytes

ROWS = Rows.pack(tiny.rows(9, name="head"))
SCORED, VOCABULARY = len(ROWS.scored), tiny.VOCABULARY
MANY = torch.arange(1024)


ALL = SCORED * VOCABULARY


@pytest.fixture(params=[(0, 1), (0, 7 * VOCABULARY), (0, 10 * SCORED), (ALL, 7 * VOCABULARY)])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits one token or one entry of the vocabulary at a time, or a few; or all in one table."""
    for name, value in zip(("WHOLE", "CHUNK"), request.param, strict=True):
        monkeypatch.setattr(head_file, name, value)
    monkeypatch.setattr(head_file, "TOKENS", {"cpu": 1})


def layer(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor]:
    """A head with states to give it."""
    torch.manual_seed(0)
    head = nn.Linear(32, VOCABULARY, bias=bias, dtype=dtype)
    return head, torch.randn(SCORED, 32, dtype=dtype, requires_grad=True)


def entropy(logits: Tensor, _chunk: slice) -> Tensor:
    log_probs = log_softmax(logits, -1)
    return -(log_probs.exp() * log_probs).sum(-1)


def log_probs_with_weights(logits: Tensor, chunk: slice) -> Tensor:
    own = log_softmax(logits, -1).gather(-1, ROWS.targets[chunk, None])[:, 0]
    return own * torch.arange(SCORED)[chunk]


def plain_log_probs(logits: Tensor, _chunk: slice) -> Tensor:
    return log_softmax(logits, -1).gather(-1, ROWS.targets[:, None])[:, 0]


def fused(head: Head) -> Tensor:
    return head.token_log_probs(ROWS.targets)


CASES: dict[str, tuple[Callable[[Head], Tensor], Callable[[Tensor, slice], Tensor]]] = {
    "log-probabilities": (fused, plain_log_probs),
    "entropy": (lambda head: head.of_logits(entropy), entropy),
    "its own place": (lambda h: h.of_logits(log_probs_with_weights), log_probs_with_weights),
}


def gradients(values: Tensor, of: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    found = torch.autograd.grad(values, of, torch.randn(SCORED))
    return [values.detach(), *found]


def apart(found: list[Tensor], right: list[Tensor]) -> float:
    """The largest relative difference."""
    pairs = zip(found, right, strict=True)
    return max(float((a - b).detach().float().norm() / b.detach().float().norm()) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_give_the_values_and_gradients_of_all_logits_at_once(chunks, name, bias):
    in_chunks, plain = CASES[name]
    head, states = layer(bias=bias)
    of = [states, *head.parameters()]
    right = gradients(plain(head(states), slice(0, SCORED)), of)
    assert apart(gradients(in_chunks(Head(states, head)), of), right) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_head_gets_no_gradient_and_gives_one_to_its_states(chunks, name):
    in_chunks, plain = CASES[name]
    head, states = layer()
    head.requires_grad_(False)
    right = gradients(plain(head(states), slice(0, SCORED)), [states])
    values = in_chunks(Head(states, head))
    assert apart(gradients(values, [states]), right) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_in_half_precision_the_gradients_are_rounded_once(chunks, name):
    in_chunks, plain = CASES[name]
    head, states = layer(dtype=torch.bfloat16)
    of = [states, *head.parameters()]
    right = gradients(plain(head(states).float(), slice(0, SCORED)), of)
    found = gradients(in_chunks(Head(states, head)), of)
    assert [x.dtype for x in found] == [x.dtype for x in right]
    assert apart(found[:1], right[:1]) <= 1e-6
    assert apart(found, right) <= 6e-3


def test_a_second_backward_pass_gives_the_same_and_no_tensor_given_is_changed(chunks):
    head, states = layer()
    given = [x.detach().clone() for x in (states, head.weight)]
    values = fused(Head(states, head))
    of, kept = [states, *head.parameters()], values.detach().clone()
    first = torch.autograd.grad(values.sum(), of, retain_graph=True)
    again = torch.autograd.grad(values.sum(), of)
    assert apart(list(again), list(first)) <= 1e-6
    assert all(torch.equal(*pair) for pair in zip((states, head.weight), given, strict=True))
    assert torch.equal(values, kept)


@pytest.mark.parametrize("function", [CASES["entropy"][0], lambda head: head.token_log_probs(MANY)])
def test_of_chunks_an_eighth_of_all_logits_is_there_at_once(monkeypatch, function):
    monkeypatch.setattr(head_file, "WHOLE", 0)
    monkeypatch.setattr(head_file, "CHUNK", len(MANY) * 32)
    monkeypatch.setattr(head_file, "TOKENS", {"cpu": 1})
    head, states = nn.Linear(8, 2048), torch.randn(len(MANY), 8, requires_grad=True)
    with peak_bytes(torch.device("cpu")) as peak:
        function(Head(states, head)).sum().backward()
    assert 0 < peak.bytes < len(MANY) * 2048 * 4 / 8
    with torch.no_grad(), peak_bytes(torch.device("cpu")) as peak:
        function(Head(states, head))
    assert 0 < peak.bytes < len(MANY) * 2048 * 4 / 8


READINGS: dict[str, Callable[[Head, Tensor], Tensor]] = {
    "log-probabilities": lambda head, targets: head.token_log_probs(targets),
    "entropy": lambda head, _: head.of_logits(entropy),
    "all logits": lambda head, _: head.logits().square().mean(-1),
}


@pytest.mark.parametrize("names", [("log-probabilities",) * 2, ("entropy",) * 2, tuple(READINGS)])
def test_several_readings_of_a_head_make_one_gradient_of_its_weight(chunks, names):
    head, states = layer()
    values, of = [], [states, *head.parameters()]
    third = SCORED // 3
    places = [slice(start, start + third) for start in range(0, third * len(names), third)]
    for one in (Head(states, head), Head(states, head).adding_up()):
        parts = zip(names, places, strict=True)
        read = [READINGS[name](one.at(place), ROWS.targets[place]) for name, place in parts]
        values.append(
            torch.autograd.grad(torch.cat([read[0], *(-3 * x for x in read[1:])]).sum(), of)
        )
    assert apart(list(values[1]), list(values[0])) <= 1e-6


@pytest.mark.parametrize("names", [("log-probabilities",) * 2, ("entropy",) * 2, tuple(READINGS)])
def test_a_look_at_other_gradients_leaves_that_of_the_weight_as_it_is(chunks, names):
    head, states = layer()
    of = [states, *head.parameters()]
    shared = Head(states, head).adding_up()
    loss = torch.cat([READINGS[name](shared, ROWS.targets) for name in names]).sum()
    right = torch.autograd.grad(loss, of, retain_graph=True)
    for _ in range(2):
        torch.autograd.grad(loss, states, retain_graph=True)
        assert apart(list(torch.autograd.grad(loss, of, retain_graph=True)), list(right)) <= 1e-6


def test_a_gradient_that_is_asked_for_where_none_is_kept_is_there_all_the_same(chunks):
    head, states = layer()
    right = torch.autograd.grad(fused(Head(states, head)).sum(), head.weight)
    with torch.no_grad():
        shared = Head(states, head).adding_up()
    found = torch.autograd.grad(fused(shared).sum(), head.weight)
    assert apart(list(found), list(right)) <= 1e-6


@pytest.mark.parametrize("whole", [0, 2**24])
@pytest.mark.parametrize("name", ["log-probabilities", "entropy"])
def test_the_gradient_of_several_readings_is_there_once(monkeypatch, whole, name):
    monkeypatch.setattr(head_file, "WHOLE", whole)
    monkeypatch.setattr(head_file, "CHUNK", 2048)
    monkeypatch.setattr(head_file, "TOKENS", {"cpu": 1})
    head, states = nn.Linear(256, 2048, bias=False), torch.randn(4, 256)
    halves, peaks = (slice(0, 2), slice(2, 4)), []
    for one in (Head(states, head), Head(states, head).adding_up()):
        with peak_bytes(torch.device("cpu")) as peak:
            taken = torch.cat([READINGS[name](one.at(half), MANY[half]) for half in halves])
            taken.sum().backward()
        head.zero_grad()
        peaks.append(peak.bytes / (head.weight.numel() * 4))
    assert peaks[0] >= 2
    assert peaks[1] <= 1.3


def of_model(model: LanguageModel, function: Callable[[LanguageModel], Tensor]) -> list[Tensor]:
    """Values, and the gradient of every parameter that is trained."""
    trained = [p for p in model.module.parameters() if p.requires_grad]
    return gradients(function(model), trained)


MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "untied": {},
    "adapters": {"tuning": "lora"},
    "only a layer": {"tuning": "layers"},
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("chunks", [(0, 7 * VOCABULARY)], indirect=True)
def test_a_model_that_is_read_in_chunks_has_the_gradient_of_one_read_whole(chunks, settings):
    model = tiny.language_model(**settings)
    model.check_packing()
    right = of_model(model, lambda m: plain_log_probs(m.logits(ROWS), slice(0, SCORED)))
    found = of_model(model, lambda m: m.token_log_probs(ROWS))
    again = of_model(model, lambda m: m.of_logits(ROWS, plain_part))
    assert apart(found, right) <= 1e-6
    assert apart(again, right) <= 1e-6


def plain_part(logits: Tensor, chunk: slice) -> Tensor:
    return log_softmax(logits, -1).gather(-1, ROWS.targets[chunk, None])[:, 0]


CAPPED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
}


@pytest.mark.parametrize("name", CAPPED)
@pytest.mark.parametrize("chunks", [(0, 7 * VOCABULARY)], indirect=True)
def test_logits_that_a_model_changes_after_its_head_are_read_whole(chunks, name):
    module = family(name, **CAPPED[name])
    rows = tiny.rows(6, name="packed")
    tables = [module(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]
    scored = [[t - 1 for t, w in enumerate(row.weights) if w > 0] for row in rows]
    right = torch.cat([table[own] for table, own in zip(tables, scored, strict=True)])
    batch = Rows.pack(rows)
    right = right.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    model = language_model(module)
    model.check_packing()
    assert (model.token_log_probs(batch) - right).abs().max() <= 1e-5


@pytest.mark.parametrize("chunks", [(0, 7 * VOCABULARY)], indirect=True)
def test_a_first_pass_is_as_all_others_to_the_bit(chunks):
    model = tiny.language_model(attention_dropout=0.2)
    model.module.train()
    model.linear_head = None  # as nobody has looked yet
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(of_model(model, lambda m: m.token_log_probs(ROWS)))
    assert model.linear_head
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_final_states_are_what_the_head_makes_its_logits_of():
    for model in (tiny.language_model(), tiny.language_model(tuning="lora")):
        for _ in range(2):  # before and after it is known that nothing is done to its logits
            states = model.at_head(ROWS, Head.given)
            made = states @ model.module.get_output_embeddings().weight.T
            assert (made - model.logits(ROWS)).abs().max() <= 1e-5


# ---- one forward pass for several losses ---------------------------------------------------------


def members(rows: Sequence[Row], *, share: bool) -> tuple[Rows, Rows]:
    """Rows of one pack: the first half of its scored tokens, and the others."""
    whole = pack(rows) if share else Rows.pack(rows)
    halves = whole.row_of < len(rows) // 2, whole.row_of >= len(rows) // 2
    first, second = (
        replace(
            whole,
            scored=whole.scored[half],
            targets=whole.targets[half],
            weights=whole.weights[half],
            row_of=whole.row_of[half],
        )
        for half in halves
    )
    return first, second


def passes(model: LanguageModel) -> list[int]:
    """The number of tokens of each forward pass from here on."""
    seen: list[int] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        seen.append(given["input_ids"].numel())
        return forward(**given)

    model.forward = counted
    return seen


def loss_of(model: LanguageModel, one: Rows, other: Rows) -> Tensor:
    """Made of all that a loss may read at the head."""
    taken = one.token_mean(model.token_log_probs(one).square())
    spread = other.token_mean(model.of_logits(other, entropy))
    flat = other.token_mean(model.logits(other).square().mean(-1))
    states = model.at_head(one, Head.given)
    return taken - 0.3 * spread + flat + one.token_mean(states.square().sum(-1))


@pytest.mark.parametrize("known", [True, False], ids=["linear", "not known to be"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("chunks", [(0, 7 * VOCABULARY)], indirect=True)
def test_two_losses_of_one_pack_are_read_in_one_pass_with_the_gradient_of_two(chunks, share, known):
    begun = [Row(f"b{i}", (1, 7, 8, 9, *(10 + i, 20 + i)), (0.0,) * 4 + (1.0,) * 2) for i in (0, 1)]
    one, other = members([*begun, *tiny.rows(4, name="together")], share=share)
    assert (one.keys is not None) == share
    model = tiny.language_model(tied=True)
    trained = list(model.module.parameters())
    right = [loss := loss_of(model, one, other), *torch.autograd.grad(loss, trained)]
    model.linear_head = known
    seen = passes(model)
    loss = model.together([one, other], lambda: loss_of(model, one, other))
    found = [loss, *torch.autograd.grad(loss, trained)]
    assert seen == [len(one.input_ids)]
    assert apart(found, right) <= 3e-6  # either way is up to 1.4e-6 from the gradient in fp64


def test_one_reading_alone_can_be_differentiated_twice():
    one, _ = members(tiny.rows(4, name="together"), share=False)
    model = tiny.language_model()
    weight = model.module.get_output_embeddings().weight

    def steepness() -> Tensor:
        (slope,) = torch.autograd.grad(model.token_log_probs(one).sum(), weight, create_graph=True)
        return slope.square().sum()

    found = [
        torch.autograd.grad(loss, weight)[0]
        for loss in (model.together([one], steepness), steepness())
    ]
    assert apart(found[:1], found[1:]) <= 1e-6


def test_what_a_model_caps_is_read_together_all_the_same():
    one, other = members(tiny.rows(4, name="together"), share=False)
    model = language_model(family("granite", **CAPPED["granite"]))
    model.check_packing()
    right = loss_of(model, one, other)
    found = model.together([one, other], lambda: loss_of(model, one, other))
    assert not model.linear_head
    assert abs(float((found / right).detach()) - 1) <= 1e-6


def test_nothing_else_is_read_inside_and_everything_again_after():
    one, other = members(tiny.rows(4, name="together"), share=False)
    model = tiny.language_model(tuning="lora")
    model.check_packing()
    before = FrozenReference(model)
    refused: list[tuple[str, Callable[[], Tensor]]] = [
        ("reads_scored", lambda: model.token_log_probs(replace(one))),
        ("reads_scored", lambda: model.token_log_probs(one.everywhere())),
        ("reads_once", lambda: model.hidden_states(one, 1)),
        ("reads_once", lambda: before.token_log_probs(one)),
        ("reads_scored", lambda: model.together([one], lambda: model.log_probs(one).sum())),
    ]
    for fact, reading in refused:
        with pytest.raises(ConfigError, match=f"give the method `{fact}` that returns False"):
            model.together([one, other], reading)
    with pytest.raises(AssertionError, match="several packs"):
        model.together(
            [one, *members(tiny.rows(4, name="x"), share=False)], lambda: torch.zeros(())
        )
    assert torch.equal(model.token_log_probs(one), model.token_log_probs(replace(one)))


@pytest.mark.parametrize(("tokens", "chunks"), [(64, [64]), (200, [64, 64, 64, 8])])
def test_a_chunk_has_sixty_four_tokens_at_least_however_many_words_there_are(tokens, chunks):
    head, states, seen = nn.Linear(1, 2**19), torch.randn(tokens, 1, requires_grad=True), []

    def first(logits: Tensor, place: slice) -> Tensor:
        seen.append(place.stop - place.start)
        return logits[:, 0]

    Head(states, head).of_logits(first)
    assert seen == chunks
