"""The trainer: losses -> gradients (perturbed where asked) -> weights -> direction -> update.

A method is a subclass that states `forget_loss`, and where it must `retain_loss` (`method.py`);
nothing else. How gradients are perturbed and weighted is decided by parts (`parts.py`), where they
live by the engine (`engine.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .automatic import AutomaticLearningRate
from .averaging import WeightAveraging
from .data import Row, Rows
from .distributed import is_main, rank, sum_over_ranks, world_size
from .engine import Engine, Loss, Shift
from .errors import NonFiniteError
from .finite import NonFinite
from .method import Method
from .micro_batches import micro_batches
from .modules import drops_out
from .noise import counter_seed, seed_draws
from .objectives import check_parts, family, objectives_of
from .optimizers import Optimizer
from .parts import Perturbation, Plan, Weighting, Weights
from .reference import Reference
from .step_record import StepRecord
from .step_warnings import unfitted, warnings_of
from .vectors import Gram, Vector, gram

Batches = Sequence[Mapping[str, Rows]]
"""This rank's micro-batches of one step, each the members of one pack by their objectives; equally
many on every rank."""


class UnlearningTrainer(Method):
    """One optimizer step after another on a forget and a retain objective."""

    def __init__(
        self,
        config: Method.Config,
        *,
        engine: Engine,
        optimizer: Optimizer,
        reference: Reference | None = None,
        weighting: Weighting | None = None,
        perturbation: Perturbation | None = None,
        averaging: WeightAveraging | None = None,
        sources: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """Parts that are None are the method's own (`default_weighting`) or absent.

        `sources`: names of retain sources; each is an objective of its own, `retain/<source>`.
        """
        self.config = config
        self.engine = engine
        self.model = engine.model
        self.optimizer = optimizer
        self.objectives = objectives_of(type(self).objectives, config.retain_loss, sources)
        self._reference = reference
        self.weighting = weighting if weighting is not None else self.default_weighting()
        self.perturbation = perturbation
        self.averaging = averaging
        every = optimizer.config.automatic_every
        self.automatic = AutomaticLearningRate(every) if every else None
        self.seed = seed
        self.skipped_steps = 0
        """As far as anybody looked: see `settle`."""
        self._nonfinite = NonFinite(sticky=config.on_nonfinite == "stop")
        self.steps_done = 0
        self.plan: Plan | None = None
        reads = reference is not None and reference.reads_rows
        self._together = type(self).reads_once(config) and not reads
        # what rows begin with differs from row to row under dropout
        self._shares = type(self).reads_scored(config) and not drops_out(self.model.module)
        self._means: dict[str, Vector] = {}
        self._warned: set[type[UserWarning]] = set()
        self._last: StepRecord | None = None
        check_parts(self.objectives, self.weighting, perturbation, optimizer)

    def begin(self, plan: Plan) -> None:
        """Learn how long the run is, before its first step and after every restart."""
        self.plan = self.weighting.plan = plan

    def finish(self) -> None:
        """After the last step: the mean of the weights takes their place, if there is one."""
        self.settle()
        if self.averaging is not None and self.averaging.mean is not None:
            self.engine.set_weights(self.averaging.mean)

    # ---- one step --------------------------------------------------------------------------------

    def micro_batches(
        self,
        rows: Mapping[str, Sequence[Row]],
        step: int,
        *,
        share: tuple[int, int] | None = None,
    ) -> list[dict[str, Rows]]:
        """What this rank reads in step `step`, counted from 0, of that step's rows.

        What rows begin with alike once, where the losses read nothing but scored positions; and all
        objectives in one pass, where the step takes one gradient and the head is all they ask.
        Whatever the weights are, it is the same: it can be asked for ahead. `share`: the rank and
        of how many; default: this one.
        """
        fits = self.automatic is not None and self.automatic.due(step)  # reads retain rows alone
        apart = self._separate(step) or fits or not self._together
        which, of = (rank(), world_size()) if share is None else share
        groups = [{name: rows[name]} for name in self.objectives]
        if not apart:
            groups = [{name: rows[name] for name in self.objectives}]
        return [
            batch
            for group in groups
            for batch in micro_batches(
                group,
                tokens=self.model.tokens_per_micro_batch,
                rank=which,
                world_size=of,
                shares=self._shares and self.model.shares_beginnings(),
                device=self.model.device,
            )
        ]

    def step(self, batches: Batches, *, learning_rate: float) -> None:
        """One update on one step's rows; `learning_rate` is the schedule's."""
        factor = 1.0 if self.automatic is None else self.automatic.factor
        record = StepRecord(learning_rate * factor, self.objectives, self.model.device)
        self._last = record
        means: dict[str, Vector] = {}
        products: Gram | None = None
        if self._separate(self.steps_done):
            gradients = {name: self._gradient(name, batches, record) for name in self.objectives}
            means = self._running_means(gradients)
            gradients |= means
            products = record.gram = gram(gradients)
            if self.weighting.losses_first:
                self.weighting.update(record.mean_losses())
            weights = self.weighting.weights(products)
            direction = _weighted_sum(gradients, weights)
        else:
            weights = self.weighting.weights(None)
            direction = self.engine.gradient(self._losses(batches, record, weights))
        record.weights = {name: weights[name] for name in self.objectives}
        if self._update(direction, batches, record):
            self._means |= means
            if self.weighting.needs_losses and not self.weighting.losses_first:
                self.weighting.update(record.mean_losses())
        self.steps_done += 1
        if self.averaging is not None:
            assert self.plan is not None, "begin() tells how long the run is"
            self.averaging.observe(self.engine, done=self.steps_done, plan=self.plan)

    def _separate(self, step: int) -> bool:
        """Whether step `step` takes one gradient per objective rather than one in all."""
        every = self.config.compare_every
        done = step + 1  # as the loop counts, so that steps that are logged are compared
        compared = every > 0 and (done == 1 or done % every == 0) and len(self.objectives) > 1
        asked = self.weighting.needs_gram or self.weighting.losses_first
        return asked or self.perturbation is not None or compared

    def _gradient(self, name: str, batches: Batches, record: StepRecord) -> Vector:
        """One objective's gradient, at the parameters that the perturbation chooses."""
        losses = self._losses(batches, record, {name: 1.0})
        silent = self._losses(batches, None, {name: 1.0})
        calls = iter([losses])

        def gradient() -> Vector:  # the loss on record is of the first reading
            return self.engine.gradient(next(calls, silent))

        def noise(draw: int) -> Vector:
            place = (self.steps_done, self.objectives.index(name), draw)
            return self.engine.noise(counter_seed(self.seed, *place))

        perturbation = self.perturbation
        if perturbation is None or family(name) not in perturbation.objectives:
            return gradient()
        return perturbation.gradient(gradient, lambda delta: self._shifted(delta, record), noise)

    def _running_means(self, gradients: Mapping[str, Vector]) -> dict[str, Vector]:
        """The running means that take their gradients' place; consumes those gradients.

        They are kept only once the step is taken: a step that is skipped leaves none behind.
        """
        means = {}
        for name, share in self.weighting.running_means.items():
            assert name != self.objectives[0], "the direction consumes the first gradient"
            before = self._means.get(name)
            means[name] = gradients[name]
            if before is not None:
                means[name].scale_(share).add_(before, 1 - share)
        return means

    @contextmanager
    def _shifted(self, delta: Vector, record: StepRecord) -> Iterator[Shift]:
        with self.engine.shifted(delta) as shift:
            del delta  # see `Engine.shifted`
            record.shift = shift
            yield shift

    def _losses(self, batches: Batches, record: StepRecord | None, weights: Weights) -> list[Loss]:
        """One thunk per micro-batch that holds any of the objectives with a weight.

        Dropout is a function of the seed, the step, the rank and the micro-batch: a second reading
        and a resumed run repeat it, another number of ranks draws other masks.
        """

        def loss_of(index: int, members: Mapping[str, Rows]) -> Loss:
            def share() -> Tensor:
                return torch.stack([weighted(name, rows) for name, rows in members.items()]).sum()

            def weighted(name: str, rows: Rows) -> Tensor:
                value = self._objective(name)(rows)
                if record is not None:
                    record.add(name, value.detach())
                return value * weights[name]

            def loss() -> Tensor:
                place = (self.steps_done, index, rank())
                seed_draws(counter_seed(self.seed, *place), self.model.device)
                if not self._together:
                    return share()
                # an objective that is alone, too: each rank makes one pass, whatever it reads
                return self.model.together(list(members.values()), share)

            return loss

        asked = [{n: rows for n, rows in batch.items() if n in weights} for batch in batches]
        return [loss_of(index, members) for index, members in enumerate(asked) if members]

    def _objective(self, name: str) -> Callable[[Rows], Tensor]:
        return {"forget": self.forget_loss, "retain": self.retain_loss}[family(name)]

    def _update(self, direction: Vector, batches: Batches, record: StepRecord) -> bool:
        """Clip, look for NaN, and step. False: skipped, as far as the host was told."""
        norm = direction.norm()
        record.norm = norm
        skip: Tensor | None = self._nonfinite.note(norm, record)
        if self._waits():
            if self._look() > 0:
                return False
            skip = None
        limit = self.optimizer.config.max_gradient_norm
        if limit is not None:
            direction.scale_((limit / norm.clamp_min(1e-300)).clamp_max(1.0))
        if self.automatic is None or not self.automatic.due(self.steps_done):
            self.engine.step(direction, record.learning_rate, skip=skip)
            return True
        moved = self.engine.weights().scale_(-1.0)
        self.engine.step(direction, record.learning_rate)
        moved.add_(self.engine.weights())
        self._fit_learning_rate(moved, batches, record.learning_rate)
        return True

    def _fit_learning_rate(self, moved: Vector, batches: Batches, rate: float) -> None:
        """Read the retain loss along the line that the step went; the weights stay as they are.

        Consumes `moved`.
        """
        assert self.automatic is not None
        down = self._mean_retain_loss(batches)
        with self.engine.shifted(moved.scale_(-1.0)) as shift:
            origin = self._mean_retain_loss(batches)
            self.engine.shift(moved.scale_(2.0))
            up = self._mean_retain_loss(batches)
        if min(float(shift.ratio), float(shift.cosine)) > 0.5:
            self.automatic.fit(rate, up=up, origin=origin, down=down)
        else:
            self._say(unfitted(self.steps_done + 1))

    def _mean_retain_loss(self, batches: Batches) -> float:
        """The mean over the retain objectives of their losses here, dropout off."""
        names = [name for name in self.objectives if family(name) == "retain"]
        read = [rows for batch in batches for name, rows in batch.items() if name in names]
        with self.model.evaluating():
            shares = [self.retain_loss(rows).double() for rows in read]
        return float(sum_over_ranks(torch.stack(shares).sum())) / len(names)

    def _waits(self) -> bool:
        """Whether something of each step must know whether it was taken.

        That is an optimizer that cannot skip on the device (`Engine.skips_on_device`), a weighting
        that learns from the losses or keeps running means, and a fit of the rate.
        """
        weighting = self.weighting
        learns = weighting.needs_losses or weighting.losses_first or weighting.running_means
        return bool(learns) or self.automatic is not None or not self.engine.skips_on_device

    def _look(self, ahead: int = 1) -> int:
        """How many steps were skipped since the last look; `ahead`: of them, not yet counted."""
        found = self._nonfinite.look()
        if found.skipped and self.config.on_nonfinite == "stop":
            losses = ", ".join(f"{name} loss {value:g}" for name, value in found.losses.items())
            raise NonFiniteError(
                "the gradient became NaN or infinite at step "
                f"{self.steps_done + ahead - found.skipped + 1} ({losses}); lower "
                "optimizer.learning_rate, or set trainer.on_nonfinite=skip"
            )
        self.skipped_steps += found.skipped
        return found.skipped

    def settle(self) -> None:
        """Learn of the steps taken so far. Raises NonFiniteError where one is to end the run.

        The weights are then those from before it. To be called before the model is measured or
        written; every rank takes part.
        """
        self._look(ahead=0)

    # ---- what a run records and keeps ------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """The last step's numbers; one reduction over ranks, one copy to the host.

        Raises NonFiniteError as `settle` does.
        """
        assert self._last is not None, "no step yet"
        self.settle()
        metrics = self._last.metrics()
        self._warn(metrics)
        parts = [p for p in (self.weighting, self.automatic, self.averaging) if p is not None]
        own = {f"train/{name}": value for p in parts for name, value in p.metrics().items()}
        return {**metrics, **own, "train/skipped_steps": float(self.skipped_steps)}

    def _warn(self, metrics: Mapping[str, float]) -> None:
        """Say what the step's numbers give cause for, each kind once."""
        geometric = self.weighting.needs_gram
        for warning in warnings_of(metrics, self.steps_done, geometric=geometric):
            self._say(warning)

    def _say(self, warning: UserWarning) -> None:
        """Warn on the first rank, once of each kind."""
        if type(warning) not in self._warned and is_main():
            warnings.warn(warning, stacklevel=4)
        self._warned.add(type(warning))

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside the engine, after a `settle`."""
        return {
            "step": self.steps_done,
            "skipped_steps": self.skipped_steps,
            "weighting": self.weighting.state_dict(),
            "automatic": None if self.automatic is None else self.automatic.state_dict(),
            "averaging": None if self.averaging is None else self.averaging.state_dict(),
        }

    def vectors(self) -> dict[str, Vector]:
        """What a restart needs that is as large as the model: running means."""
        mean = None if self.averaging is None else self.averaging.mean
        weights = {} if mean is None else {"weights": mean}
        return {f"gradient/{name}": v for name, v in self._means.items()} | weights

    def load_vectors(self, vectors: Mapping[str, Vector]) -> None:
        """Restore what `vectors` gave."""
        self._means = {
            name.partition("/")[2]: v for name, v in vectors.items() if name != "weights"
        }
        if self.averaging is not None:
            self.averaging.mean = vectors.get("weights")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.steps_done = state["step"]
        self.skipped_steps = state["skipped_steps"]
        self.weighting.load_state_dict(state["weighting"])
        if self.automatic is not None:
            self.automatic.load_state_dict(state["automatic"])
        if self.averaging is not None:
            self.averaging.load_state_dict(state["averaging"])


def _weighted_sum(gradients: dict[str, Vector], weights: Weights) -> Vector:
    """The direction; consumes the gradients."""
    first, *rest = gradients
    direction = gradients.pop(first).scale_(weights[first])
    for name in rest:
        direction.add_(gradients.pop(name), weights[name])
    return direction
