"""What a GPU would refuse, found without one: whole steps, measuring, restarts on a pretended one.

Every method, weighting, perturbation and other choice of configs/ takes a step there, in bf16 with
fp32 masters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import compositions
import pytest
import tiny
import torch
from compositions import COVERING, Composition, build, plan_of
from pretended_gpu import CARD, on_card, pretended_gpu
from torch import Tensor

from framework import LanguageModel, LocalEngine, UnlearningTrainer, head
from framework.checkpoint import Checkpoints
from framework.data import Rows, sent
from framework.engine import Engine
from framework.optimizers import Optimizer
from framework.recomputation import recompute
from framework.sampling import Sampling
from framework.vectors import Vector

NPO, PLAIN = ("npo", "none", "none"), ("grad_diff", "none", "none")
PROMPTS = ["t3 t4", "t5 t6 t7", "t8"]


def in_bf16(model: LanguageModel, optimizer: Optimizer) -> LocalEngine:
    """Plain torch with fp32 masters."""
    return LocalEngine(LocalEngine.Config(), model=model, optimizer=optimizer, precision="bf16")


class Offloaded(LocalEngine):
    """Vectors in host memory, as ZeRO has them where masters are offloaded."""

    def gradient(self, losses: Sequence[Callable[[], Tensor]]) -> Vector:
        return self.vector(super().gradient(losses).shards)

    def noise(self, seed: int) -> Vector:
        return self.vector(super().noise(seed).shards)

    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        assert skip is None or not on_card(skip), "the host would be told too late"
        device = self.model.device
        there = Vector([x.to(device) for x in direction.shards], replicated=True)
        super().step(there, learning_rate, skip=None if skip is None else skip.to(device))

    def vector(self, shards: Sequence[Tensor]) -> Vector:
        return Vector([x.cpu() for x in shards], replicated=True)

    def set_weights(self, weights: Vector) -> None:
        super().set_weights(Vector([x.to(self.model.device) for x in weights.shards]))


def offloaded(model: LanguageModel, optimizer: Optimizer) -> LocalEngine:
    return Offloaded(Offloaded.Config(), model=model, optimizer=optimizer, precision="bf16")


def stepped(
    composition: Composition,
    *overrides: str,
    engine: Callable[[LanguageModel, Optimizer], Engine] = in_bf16,
    device: torch.device = CARD,
    tokens: int = 1000,
    changed: Callable[[UnlearningTrainer], object] = lambda trainer: None,
) -> tuple[UnlearningTrainer, dict[str, float]]:
    """The trainer after a step of the composition on `device`, and what it logs."""
    plan = plan_of(composition, 1, 2)
    given = overrides or ("optimizer=adamw",)
    trainer = build(composition, plan, *given, engine=engine, device=device)
    changed(trainer)
    tiny.train(trainer, plan, tokens=tokens)
    return trainer, trainer.metrics()


@pytest.mark.parametrize("composition", COVERING, ids="-".join)
def test_a_step_of_every_choice_mixes_no_devices(composition: Composition):
    with pretended_gpu():
        trainer, _ = stepped(composition)
        weights = trainer.engine.weights().shards
        assert all(map(on_card, [*trainer.model.module.parameters(), *weights]))


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.retain_loss=kl", "trainer.reference=frozen"),
        ("trainer.retain_loss=states", "trainer.compare_every=1"),
    ],
    ids="-".join,
)
def test_a_step_with_another_retain_loss_mixes_no_devices(overrides: tuple[str, ...]):
    with pretended_gpu():
        stepped((*NPO, *overrides))


@pytest.mark.parametrize("method", ["npo", "undial", "max_entropy"])
def test_logits_in_chunks_mix_no_devices(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "WHOLE", 0)
    monkeypatch.setattr(head, "CHUNK", 8 * tiny.VOCABULARY)
    monkeypatch.setattr(head, "TOKENS", {CARD.type: 8})
    with pretended_gpu():
        stepped((method, "none", "none", "trainer.retain_loss=kl"), tokens=64)


@pytest.mark.parametrize("how", [True, "selective"])
def test_activations_are_computed_again_on_the_gpu(how):
    with pretended_gpu():
        _, plain = stepped(NPO)
        _, again = stepped(NPO, changed=lambda x: recompute(x.model.module, how))
    assert again == plain


@pytest.mark.parametrize(
    "composition",
    [
        ("npo", "gru", "curvature"),
        ("grad_diff", "primal_dual", "random_smoothing"),
        (*NPO, "averaging=uniform", "optimizer.automatic_every=1"),
    ],
    ids="-".join,
)
def test_a_step_of_vectors_in_host_memory_mixes_no_devices(composition: Composition):
    with pretended_gpu():
        stepped(composition, engine=offloaded)


def test_a_step_in_fp32_is_the_cpus_to_the_bit():
    def weights(device: torch.device) -> list[Tensor]:
        trainer, _ = stepped(NPO, "optimizer=adamw", engine=compositions.local, device=device)
        return [x.cpu() for x in trainer.engine.weights().shards]

    with pretended_gpu():
        there = weights(CARD)
    assert all(map(torch.equal, there, weights(torch.device("cpu"))))


def test_heads_that_flash_attention_does_not_take_are_read_without_it():
    module = tiny.module(hidden_size=16, num_attention_heads=4, num_key_value_heads=2)
    rows = tiny.rows(3, name="r")
    with pretended_gpu():
        model = tiny.wrapped(module)
        model.cast(torch.bfloat16)
        model.move(CARD)
        assert model.token_log_probs(Rows.pack(rows, device=CARD)).isfinite().all()


def measured(device: torch.device) -> tuple[object, ...]:
    """What evaluation asks of the tiny model there."""
    model = tiny.language_model()
    model.move(device)
    model.linear_head = None
    model.check_packing()
    pairs = [(prompt, "t9 t4") for prompt in PROMPTS]
    sampling = Sampling(temperature=1.0, seed=0, names=tuple(PROMPTS))
    return (
        [score.log_probs.tolist() for score in model.scores(pairs)],
        model.next_log_probs(PROMPTS, [" t3", " t9"]).tolist(),
        model.gradient_norms(pairs),
        model.generate(PROMPTS, 4),
        model.generate(PROMPTS, 4, sampling=sampling),
    )


def test_a_model_on_a_gpu_is_measured_as_on_a_cpu():
    with pretended_gpu():
        there = measured(CARD)
    assert there == measured(torch.device("cpu"))


def test_a_checkpoint_goes_on_where_it_was_on_a_gpu(tmp_path: Path):
    plan = plan_of(PLAIN, 2, 2)
    with pretended_gpu():
        whole, _ = stepped(PLAIN)
        folder = Checkpoints(tmp_path).save(whole.engine, whole)
        begun = build(PLAIN, plan, "optimizer=adamw", engine=in_bf16, device=CARD)
        Checkpoints(tmp_path).restore(folder, begun.engine, begun)
        for trainer in (whole, begun):
            tiny.train(trainer, plan[1:], tokens=1000)
        weights = [trainer.engine.weights().shards for trainer in (whole, begun)]
        assert all(map(torch.equal, *weights))
        assert all(map(on_card, begun.model.module.parameters()))


class Forgetful(UnlearningTrainer):
    """Its loss has a tensor of the host's."""

    def forget_loss(self, rows: Rows) -> Tensor:
        """Of log-probabilities and zeros."""
        return rows.token_mean(self.model.token_log_probs(rows) + torch.zeros(1))


def test_a_loss_with_a_tensor_of_the_host_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tiny.METHODS, "forgetful", (Forgetful, {}))
    plan = tiny.step_rows(1, 2)
    with pretended_gpu():
        model = tiny.language_model()
        model.move(CARD)
        optimizer = tiny.optimizer("adamw", clip=None)
        engine = in_bf16(model, optimizer)
        trainer = tiny.trainer(engine, model, plan, method="forgetful", optimizer=optimizer)
        with pytest.raises(RuntimeError, match="on the same device"):
            tiny.train(trainer, plan, tokens=1000)


def test_what_a_gpu_refuses_is_refused():
    with pretended_gpu():
        there, host = torch.arange(4.0, device=CARD), torch.arange(4)
        assert sent(host, CARD).is_cuda
        assert (there + torch.tensor(1.0)).is_cuda  # a number may be the host's
        for refused in (
            lambda: there + host,
            lambda: there[host],
            lambda: torch.stack([there[0], torch.tensor(1.0)]),
            there.numpy,
            lambda: there.to("cpu", non_blocking=True),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                refused()
