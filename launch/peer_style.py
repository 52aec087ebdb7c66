"""A step as released programs for unlearning take it, restated plainly, to be measured against.

Rows are padded to the longest of their batch and come with an attention mask; logits are computed
at every position; the reference is a second model that reads along; forget and retain rows have
forward passes of their own, and one backward pass goes through the sum of their losses; gradients
are clipped by torch and stepped by fused AdamW, as ours are.

Where definitions differ, ours is computed, which costs the same: means are over the whole step's
answer tokens (nll, kl) or rows, a kl or a distance counts answer tokens only, and RMU's direction
is ours. `Habits` are what the programs do beyond what their mathematics asks for.

Shapes: `B` rows, `L` tokens of the longest, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid
from torch.nn.utils import clip_grad_norm_

from framework import Row
from framework.data import StepTotals
from framework.engine import trained
from framework.modules import trainable_parameters
from framework.optimizers import Optimizer
from trainers.rmu import direction

from .padded_rows import IGNORED, Padded, padded

METHODS = ("grad_diff", "npo", "npo_kl", "simnpo", "dpo", "rmu", "sam", "blur")
"""What can be stepped; `sam` and `blur` are around NPO."""
REFERRING = ("npo", "npo_kl", "dpo", "rmu", "sam", "blur")
"""Those that read a reference."""


@dataclass(frozen=True)
class Habits:
    """What is done beyond what the mathematics asks for; by default as published."""

    labels: bool = True
    """Labels are given to every forward pass, and the model computes a loss of its own from them
    that nobody reads."""
    again: bool = True
    """A pass is run once more: KL's retain rows, the result thrown away (open-unlearning's
    grad_diff.py); SAM's reference on the same rows (Unlearn-Smooth's sam_iterative.py)."""
    transposed: bool = True
    """Cross entropy is of a copy of all logits but the last, transposed (open-unlearning's
    src/trainer/utils.py)."""
    items: bool = True
    """Numbers are waited for: every batch's loss, of which transformers' Trainer asks whether it is
    finite (`logging_nan_inf_filter`, by default; huggingface/transformers#33693), and BLUR's
    products at every parameter (its MUSE code's iterative.py)."""


PUBLISHED, BEST = Habits(), Habits(False, False, False, False)


@dataclass(frozen=True)
class Recipe:
    """A method and its settings, by our names."""

    method: str
    """One of `METHODS`."""
    beta: float = 0.1
    delta: float = 0.0
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    layer: int = 1
    steering: float = 2.0
    rho: float = 0.01
    gamma: float = 1.0
    alpha: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class _Part:
    """A batch of each objective, and what the step's means divide by."""

    forget: Padded
    preferred: Padded | None
    retain: Padded
    rows: int
    forget_tokens: float
    retain_tokens: float


class Update:
    """Clip, step fused AdamW on fp32 masters, round to the weights' precision."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        """`optimizer`: ours, of which torch's own is built once more."""
        self.parameters: list[Tensor] = [p for _, p in trainable_parameters(module)]
        whole = self.parameters[0].dtype == torch.float32
        self.masters: list[Tensor] = (
            list(self.parameters)
            if whole
            else [nn.Parameter(p.detach().float()) for p in self.parameters]
        )
        self.config = optimizer.config
        self.torch = optimizer.build(optimizer.groups(trained(module, self.masters)))
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.step()  # it has its moments now; nothing has moved

    @torch.no_grad()
    def follow(self) -> None:
        """Go on from the parameters as they are."""
        if self.parameters[0] is not self.masters[0]:
            torch._foreach_copy_(self.masters, self.parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Along the gradients that the parameters hold; they are gone afterwards."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            if p is not master and p.grad is not None:
                master.grad, p.grad = p.grad.float(), None
        if self.config.max_gradient_norm is not None:
            clip_grad_norm_(self.masters, self.config.max_gradient_norm)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        if self.parameters[0] is not self.masters[0]:
            torch._foreach_copy_(self.parameters, self.masters)


class PeerStyle:
    """One method's step on a module, with a reference beside it."""

    def __init__(
        self,
        recipe: Recipe,
        habits: Habits,
        *,
        module: nn.Module,
        reference: nn.Module | None,
        update: Update,
        batch: int,
    ) -> None:
        """`batch`: rows of each objective in a forward pass; of more, gradients add up."""
        assert recipe.method in METHODS, recipe.method
        assert reference is not None or recipe.method not in REFERRING, "needs a reference"
        self.recipe = recipe
        self.habits = habits
        self.module = module
        self.reference = reference
        self.update = update
        self.batch = batch

    def step(self, forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, Tensor]:
        """Gradient and update; the losses by objective."""
        losses = self.differentiate(forget, retain)
        self.update.step()
        return losses

    def differentiate(self, forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, Tensor]:
        """The losses by objective; their gradient is left in the parameters."""
        parts = list(self._parts(forget, retain))
        ways = {"sam": self._sam, "blur": self._blur}
        return ways.get(self.recipe.method, self._summed)(parts)

    def _parts(self, forget: Sequence[Row], retain: Sequence[Row]) -> Iterator[_Part]:
        device = self.update.parameters[0].device
        for start in range(0, len(forget), self.batch):
            given = forget[start : start + self.batch]
            others = [row.preferred for row in given if row.preferred is not None]
            yield _Part(
                padded(given, device),
                padded(others, device) if others else None,
                padded(retain[start : start + self.batch], device),
                rows=len(forget),
                forget_tokens=StepTotals.of(forget).weight,
                retain_tokens=StepTotals.of(retain).weight,
            )

    # ---- from losses to a gradient ---------------------------------------------------------------

    def _summed(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """One backward pass through the weighted sum of both losses, batch by batch."""
        losses: dict[str, Tensor] = {}
        for part in parts:
            forget, retain = self._forget(part), self._retain(part)
            loss = self.recipe.forget_weight * forget + self.recipe.retain_weight * retain
            loss.backward()
            self._add(losses, forget=forget, retain=retain)
        return losses

    def _sam(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """The forget gradient at the worst parameters near by, the retain gradient here."""
        losses: dict[str, Tensor] = {}
        read = [self._before(part.forget) for part in parts]
        for part, before in zip(parts, read, strict=True):
            forget = self._npo(part, before)
            forget.backward()
            self._add(losses, forget=forget)
        with torch.no_grad():
            steps = [_taken(p) for p in self.update.parameters]
            size = self.recipe.rho / torch.stack([step.norm() for step in steps]).norm()
            for p, step in zip(self.update.parameters, steps, strict=True):
                p.add_(step.mul_(size))
        try:
            for part, before in zip(parts, read, strict=True):
                again = self._before(part.forget) if self.habits.again else before
                (self.recipe.forget_weight * self._npo(part, again)).backward()
        finally:  # also where it does not fit: others are measured after it
            with torch.no_grad():
                for p, step in zip(self.update.parameters, steps, strict=True):
                    p.sub_(step)
        for part in parts:
            retain = self._retain(part)
            (self.recipe.retain_weight * retain).backward()
            self._add(losses, retain=retain)
        return losses

    def _blur(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """Two gradients, kept parameter by parameter; the retain one made not to undo the other."""
        losses: dict[str, Tensor] = {}
        kept: dict[str, list[Tensor]] = {}
        for part in parts:
            shares = {"forget": self._forget(part), "retain": self._retain(part)}
            self._add(losses, **shares)
            for name, share in shares.items():
                share.backward(retain_graph=name == "forget")
                new = [_taken(p).clone() for p in self.update.parameters]
                old = kept.get(name)
                kept[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
        pairs = list(zip(kept["retain"], kept["forget"], strict=True))
        along = self._total([(a * b).sum() for a, b in pairs])
        squared = self._total([(b * b).sum() for _, b in pairs])
        gamma, alpha = self.recipe.gamma, self.recipe.alpha
        for p, (retained, forgotten) in zip(self.update.parameters, pairs, strict=True):
            p.grad = alpha * retained + (gamma - alpha * along / squared) * forgotten
        return losses

    def _total(self, products: Sequence[Tensor]) -> Tensor | float:
        if self.habits.items:
            return sum(product.item() for product in products)
        return torch.stack(list(products)).sum()

    def _add(self, losses: dict[str, Tensor], **shares: Tensor) -> None:
        for name, share in shares.items():
            known = share.detach()
            losses[name] = losses[name] + known if name in losses else known
        if self.habits.items:
            torch.stack([share.detach() for share in shares.values()]).sum().isfinite().item()

    # ---- losses: a batch's share of the step's mean ----------------------------------------------

    def _forget(self, part: _Part) -> Tensor:
        recipe = self.recipe
        if recipe.method == "grad_diff":
            return -self._nll(self.module, part.forget).sum() / part.forget_tokens
        if recipe.method == "simnpo":
            mean = self._nll(self.module, part.forget) / (part.forget.targets != IGNORED).sum(-1)
            return self._bounded(mean - recipe.delta, part)
        if recipe.method == "dpo":
            assert part.preferred is not None, "rows with a preferred answer"
            gained, lost = (
                self._before(batch) - self._nll(self.module, batch)
                for batch in (part.preferred, part.forget)
            )
            return self._bounded(gained - lost, part)
        if recipe.method == "rmu":
            states = self._states(self.module, part.forget)
            u = direction(recipe.seed, states.shape[-1], states.device)
            return self._distance(part.forget, states, recipe.steering * u) / part.rows
        return self._npo(part, self._before(part.forget))

    def _retain(self, part: _Part) -> Tensor:
        method, retain = self.recipe.method, part.retain
        if method == "npo_kl":
            return self._kl(retain) / part.retain_tokens
        if method == "rmu":
            states = self._states(self.module, retain)
            with torch.no_grad():
                before = self._states(self.reference, retain)
            return self._distance(retain, states, before) / part.rows
        output = self._read(self.module, retain, labels=True, total=part.retain_tokens)
        loss: Tensor = output.loss  # the model's own, as peers take it
        return loss

    def _npo(self, part: _Part, before: Tensor) -> Tensor:
        return self._bounded(self._nll(self.module, part.forget) - before, part)

    def _bounded(self, margin: Tensor, part: _Part) -> Tensor:
        beta = self.recipe.beta
        return (-2 / beta * logsigmoid(beta * margin)).sum() / part.rows

    def _kl(self, batch: Padded) -> Tensor:
        if self.habits.again:
            self._read(self.module, batch)
        with torch.no_grad():
            before = log_softmax(self._logits(self.reference, batch), -1)
        now = log_softmax(self._logits(self.module, batch), -1)
        each = kl_div(now, before, reduction="none", log_target=True).sum(-1)[:, :-1]
        return (each * (batch.targets != IGNORED)).sum()

    def _distance(self, batch: Padded, states: Tensor, target: Tensor) -> Tensor:
        """Of each row the mean over what predicts its answer, summed over the rows."""
        counted = batch.targets != IGNORED
        each = (states.float() - target.float()).square().mean(-1)[:, :-1]
        return ((each * counted).sum(-1) / counted.sum(-1)).sum()

    # ---- forward passes --------------------------------------------------------------------------

    def _before(self, batch: Padded) -> Tensor:
        with torch.no_grad():
            return self._nll(self.reference, batch)

    def _nll(self, module: nn.Module | None, batch: Padded) -> Tensor:
        """[B] of each answer, from logits at every position."""
        logits = self._logits(module, batch)
        if self.habits.transposed:
            logits, targets = logits[:, :-1].contiguous().transpose(-1, -2), batch.targets
        else:
            logits, targets = logits.flatten(0, 1), batch.all_targets.flatten()
        found = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return found.view(len(batch.labels), -1).sum(-1)

    def _logits(self, module: nn.Module | None, batch: Padded) -> Tensor:
        """[B, L, V] in fp32, as autocast has cross entropy and log-softmax in bf16 training."""
        logits: Tensor = self._read(module, batch).logits
        return logits.float()

    def _states(self, module: nn.Module | None, batch: Padded) -> Tensor:
        """[B, L, D] output of the decoder block; the whole model is run for it."""
        caught: list[Tensor] = []

        def catch(_block: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        blocks: Any = module.get_decoder().layers  # type: ignore[union-attr, operator]
        hook = blocks[self.recipe.layer - 1].register_forward_hook(catch)
        try:
            self._read(module, batch)
        finally:
            hook.remove()
        return caught[0]

    def _read(
        self,
        module: nn.Module | None,
        batch: Padded,
        *,
        labels: bool = False,
        total: float | None = None,
    ) -> Any:
        """The output of transformers; with labels a loss, their mean, or sum over `total`."""
        assert module is not None, "the method reads a reference"
        given: dict[str, Any] = {} if total is None else {"num_items_in_batch": total}
        if labels or self.habits.labels:
            given["labels"] = batch.labels
        return module(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **given,
        )


def _taken(parameter: Tensor) -> Tensor:
    """The parameter's gradient, handed over."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient
