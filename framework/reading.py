"""Reading packed rows: logits, log-probabilities and hidden states, what losses are made of.

Logits are computed at scored positions only, and rows travel without padding (`data.Rows`).

Shapes: `R` rows, `T` tokens, `S` scored tokens, `V` vocabulary, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from . import attention, gated, last_block
from .data import MORE_THAN_SCORED, Rows
from .distributed import all_gather_objects, on_all_ranks
from .errors import ConfigError
from .head import Head, PerToken, computing, unchanged, watched
from .modules import final_block, up_to
from .packing_check import OWN, check_apart, few_as_all, shared_as_apart

MORE_THAN_HEAD = (
    "a loss of this method reads more of the model than its output head, in a pass that serves "
    "other losses, too; give the method `reads_once` that returns False"
)
MORE_THAN_STATES = (
    "a loss of this method reads `hidden_states` of all tokens, some of which rows share; read "
    "`model.states`, those at scored positions, or give the method `reads_scored` that returns "
    "False"
)


class Reader:
    """A transformers causal model that reads packed rows.

    `forward` is the module itself until an engine takes it over (DeepSpeed must see every call).
    """

    def __init__(self, module: transformers.PreTrainedModel) -> None:
        """`module`: its attention is exchanged for ours, and its blocks compute and keep less."""
        self.module = module
        self.forward: Callable[..., Any] = module
        self.partitioned = False
        """Whether every rank must take part in every forward pass (ZeRO-3)."""
        self.gathered: Callable[[list[nn.Parameter]], AbstractContextManager[object]] = nullcontext
        """Inside, these parameters are whole on every rank; every rank must enter."""
        self._shares = True
        self.linear_head: bool | None = None
        """Whether logits are one linear layer's product, neither capped nor scaled; None: nobody
        has looked yet."""
        self._heads: Mapping[int, Head] = {}
        gated.keep_less(module)
        self._narrows = last_block.narrow(final_block(module))
        """Whether its last block can be asked for some positions alone."""
        attention.register()
        self.attend(attention.NAME)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.module.device

    def logits(self, rows: Rows) -> Tensor:
        """[S, V] fp32 logits at the scored positions, all at once."""
        return self.at_head(rows, Head.logits)

    def of_logits(self, rows: Rows, function: PerToken) -> Tensor:
        """[S] what `function(logits [C, V] fp32, chunk)` gives of the logits, chunk by chunk.

        `chunk` is their place among the scored positions. Gradients flow through `logits` alone.
        """
        return self.at_head(rows, lambda head: head.of_logits(function))

    def token_log_probs(self, rows: Rows) -> Tensor:
        """[S] log-probability of each scored token, in nats."""
        return self.at_head(rows, lambda head: head.token_log_probs(rows.targets))

    def log_probs(self, rows: Rows) -> Tensor:
        """[R] log-probability of each row's answer: the weighted sum over its tokens, in nats."""
        return rows.row_sum(self.token_log_probs(rows))

    def hidden_states(self, rows: Rows, layer: int) -> Tensor:
        """[T, D] output of decoder block `layer`, 1 the first, before any final norm.

        As `states`, of all tokens; raises ConfigError where rows share some, each there once only.
        """
        if rows.keys is not None:
            raise ConfigError(MORE_THAN_STATES)
        return self._states(rows, layer)

    def states(self, rows: Rows, layer: int) -> Tensor:
        """[S, D] of them at the scored positions.

        Later blocks are not computed. Raises ConfigError where gradients are asked for and there
        are none, for want of anything trainable up to the block.
        """
        return self._states(rows, layer)[rows.scored]

    def _states(self, rows: Rows, layer: int) -> Tensor:
        with up_to(self.module, layer):
            states: Tensor = self._read(rows, logits_to_keep=rows.scored[:1]).hidden_states[0]
        if torch.is_grad_enabled() and not states.requires_grad:
            raise ConfigError(
                f"nothing that is trained comes before the output of decoder block {layer}, so a "
                "loss of it has no gradient; set a higher trainer.layer, or name earlier blocks in "
                "tuning.parameters"
            )
        return states[0]

    def together(self, members: Sequence[Rows], loss: Callable[[], Tensor]) -> Tensor:
        """`loss()`, a scalar; one forward pass serves all its readings of `members`.

        They are rows of one pack: they share its tokens and differ in what is scored. Inside,
        other rows of this model cannot be read. Where there are several members the head's part
        can be differentiated once, not twice (`create_graph`).
        """
        pack, counts = members[0], [len(rows.scored) for rows in members]
        assert all(rows.input_ids is pack.input_ids for rows in members), "rows of several packs"
        assert all(rows.keys is pack.keys for rows in members), "rows of several packs"

        def served(head: Head) -> Tensor:
            head = head.adding_up() if len(members) > 1 else head
            ends = list(accumulate(counts))
            places = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
            parts = zip(members, places, strict=True)
            self._heads = {id(rows): head.at(place) for rows, place in parts}
            try:
                return loss()
            finally:
                self._heads = {}

        scored = torch.cat([rows.scored for rows in members])
        return self.at_head(replace(pack, scored=scored), served)

    def at_head(self, rows: Rows, function: Callable[[Head], Tensor]) -> Tensor:
        """What the function makes of the output head in a forward pass over `rows`."""
        if self._heads:
            if id(rows) not in self._heads:
                raise ConfigError(MORE_THAN_SCORED)
            return function(self._heads[id(rows)])
        layer = self.module.get_output_embeddings()
        if self.linear_head is None:  # on other rows: the first pass over these is as all others
            with self.evaluating():
                _, self.linear_head = watched(layer, self._few_logits)
        if self.linear_head:
            with computing(layer, function):
                return self._logits(rows)
        head, _ = watched(layer, lambda: self._logits(rows))
        return function(head)

    def head_unchanged(self, head: nn.Module) -> bool:
        """Whether the model's logits are what its head gives, neither capped nor scaled, by bits.

        Of a few tokens. `head`: the output head, or the layer within its adapters. Every rank must
        call this.
        """
        with self.evaluating():
            return unchanged(head, self._few_logits)

    def _few_logits(self) -> Tensor:
        return self._logits(Rows.pack([OWN], device=self.device))

    def _narrow_logits(self, rows: Rows) -> Tensor:
        """As `logits`, the last block asked for scored positions alone."""
        self._narrows = True
        try:
            return self.logits(rows)
        finally:
            self._narrows = False

    def _logits(self, rows: Rows) -> Tensor:
        """[1, S, V], as the model gives them."""
        options: dict[str, Any] = {"logits_to_keep": rows.scored}
        # every rank must call the same modules in the same order, whatever rows it reads
        if self._narrows and (self.partitioned or len(rows.scored) < len(rows.input_ids)):
            options = {last_block.ASKED: rows.scored}
        logits: Tensor = self._read(rows, **options).logits
        return logits

    def _read(self, rows: Rows, **options: Any) -> Any:
        if self._heads:
            raise ConfigError(MORE_THAN_HEAD)
        return self.forward(
            input_ids=rows.input_ids[None],
            position_ids=rows.position_ids[None],
            use_cache=False,
            row_lengths=rows.lengths,
            boundaries=rows.boundaries,
            keys=rows.keys,
            **options,
        )

    def check_packing(self) -> None:
        """Raise ModelError for a model that reads one packed row into the next.

        Falcon, Bloom, MPT and all that carry a state from token to token (Mamba, Jamba, RWKV) go
        around the attention that keeps rows apart, without a word. Every rank must call this: where
        one rank's kernel misses what rows share, none shares, since all cut a step alike. And where
        the last block does not give the same at scored positions alone, it reads all of them.
        """
        name = type(self.module).__name__
        narrows, self._narrows = self._narrows, False
        with self.evaluating():
            on_all_ranks(lambda: check_apart(self.logits, self.device, name))
            if self.shares_beginnings():  # and the devices' kernels read what rows share
                reads = shared_as_apart(self.logits, self.device)
                self._shares = all(all_gather_objects(reads))
            if narrows:
                reads = few_as_all(self._narrow_logits, self.logits, self.device)
                self._narrows = all(all_gather_objects(reads))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout and no gradients inside."""
        if self._heads:
            raise ConfigError(MORE_THAN_HEAD)
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)

    def shares_beginnings(self) -> bool:
        """Whether its attention is ours, which can: GPT-J's keeps rows apart in its own way."""
        known = self.module.config._attn_implementation  # noqa: SLF001 - told nowhere else
        return self._shares and bool(known == attention.NAME)

    def attend(self, implementation: str) -> None:
        """Compute attention by the transformers implementation of that name."""
        self.module.set_attn_implementation(implementation)
