"""A causal language model as unlearning sees it: log-probabilities, hidden states, answers.

What losses are made of is a `Reader`'s (`reading.py`). Evaluation shares its work between the
ranks in pieces that do not depend on how many ranks there are, so it gives the same numbers on any
number of GPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from . import attention
from .data import Row, Rows
from .decoding import Decoding, batches_of_prompts, bytes_per_token, decode
from .distributed import gather_in_order, rank, sum_over_ranks, world_size
from .encoding import encode_pairs, encode_prompts
from .errors import ModelError
from .gradient_norms import differentiable, mean_norm
from .next_token import encode_next, encode_raw
from .prompt_format import PromptFormat
from .reading import Reader
from .sampling import Choice, Sampling, drawn_of, likeliest
from .scores import TokenScores, numbers_of, scores_of
from .shared import pack, packs_of
from .stopping import heard, leave
from .swap import put_in_place
from .terminal import progress

T = TypeVar("T")


class LanguageModel(Reader):
    """A transformers causal model with its tokenizer and prompt format."""

    def __init__(
        self,
        module: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        prompt_format: PromptFormat,
        max_length: int,
        tokens_per_micro_batch: int = 4096,
        generation_memory: float = 8.0,
    ) -> None:
        """`max_length`: tokens of a row at most; `tokens_per_micro_batch`: of a forward pass.

        `generation_memory`: GiB of the keys and values of a batch of answers, at most.
        """
        super().__init__(module)
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format
        self.max_length = max_length
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.generation_memory = generation_memory

    def cast(self, dtype: torch.dtype) -> None:
        """Hold the weights in `dtype`."""
        nn.Module.to(self.module, dtype=dtype)

    def move(self, device: torch.device) -> None:
        """Compute on `device`."""
        nn.Module.to(self.module, device=device)

    # ---- what evaluation asks --------------------------------------------------------------------

    def scores(
        self, pairs: Sequence[tuple[str, str]], description: str = "scoring"
    ) -> list[TokenScores]:
        """Teacher-forced scores of (prompt, answer) texts, in their order, on every rank."""
        rows = encode_pairs(
            pairs, self.tokenizer, self.prompt_format, self.max_length, description=description
        )
        return self.score_rows(rows, description)

    def score_rows(self, rows: Sequence[Row], description: str = "scoring") -> list[TokenScores]:
        """Teacher-forced scores of each row's counted tokens, in their order, on every rank."""
        if not rows:
            return []
        numbered = [Row(str(i), row.input_ids, row.weights) for i, row in enumerate(rows)]
        mine: dict[int, TokenScores] = {}
        with self.evaluating():
            for batch in self.packs(numbered, description):
                found = scores_of(self.of_logits(batch, numbers_of(batch)), batch)
                mine.update(zip(map(int, batch.ids), found, strict=True))
        return gather_in_order(mine, len(rows))

    def next_log_probs(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        description: str = "choosing",
    ) -> np.ndarray:
        """[prompts, continuations] fp64 log-probability of each text right after each raw prompt.

        Nothing stands between the two, neither a chat template nor a separator; the prompt begins
        as the tokenizer begins any text, and loses its left where it is longer than the model can
        read. In their order, on every rank. Raises ModelError where a continuation is not one
        token after a prompt.
        """
        if not prompts:
            return np.zeros((0, len(continuations)))
        asked = encode_next(prompts, continuations, self.tokenizer, self.positions())
        rows = [row for row, _ in asked]
        mine: dict[int, np.ndarray] = {}
        with self.evaluating():
            for batch in self.packs(rows, description):
                numbers = [int(name) for name in batch.ids]
                own = torch.tensor([asked[i][1] for i in numbers], device=self.device)
                logits = self.logits(batch)
                found = logits.gather(-1, own) - logits.logsumexp(-1, keepdim=True)
                mine.update(zip(numbers, found.double().cpu().numpy(), strict=True))
        return np.stack(gather_in_order(mine, len(rows)))

    def gradient_norms(
        self, pairs: Sequence[tuple[str, str]], description: str = "gradient norms"
    ) -> list[float]:
        """`mean_norm` of the NLL of each text's answer, in their order, on every rank.

        A forward and a backward pass for each text. Raises ModelError under ZeRO-3.
        """
        if self.partitioned:
            raise ModelError(
                "gradient norms need whole weights, and ZeRO-3 keeps parts of them; set "
                "benchmark.gradient_norm=false here, and measure the saved model by launch.eval"
            )
        rows = encode_pairs(
            pairs, self.tokenizer, self.prompt_format, self.max_length, description=description
        )
        mine: dict[int, float] = {}
        # Past the engine, which would take a backward pass for a part of its step.
        engine, self.forward = self.forward, self.module
        try:
            with self.evaluating(), differentiable(self.module) as parameters:
                for i in self._pieces(list(range(len(rows))), description):
                    batch = Rows.pack([rows[i]], device=self.device)
                    mine[i] = mean_norm(-self.token_log_probs(batch).mean(), parameters)
        finally:
            self.forward = engine
        return gather_in_order(mine, len(rows))

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        description: str = "answering",
        *,
        sampling: Sampling | None = None,
        begun: str = "",
        stripped: bool = True,
        raw: bool = False,
    ) -> list[str]:
        """Greedy or drawn answers to `prompts`, in their order, on every rank.

        `begun`: how every answer begins, which is read by the model and not returned. `stripped`:
        without the white space around them. `raw`: go on from the prompts without their format.
        """
        if not prompts:
            return []
        assert sampling is None or len(sampling.names) == len(prompts), "one name per prompt"
        room = self.positions() - max_new_tokens
        if room < 1:
            raise ModelError(
                f"an answer of {max_new_tokens} tokens leaves no room for its prompt: the model "
                f"reads {self.positions()} tokens; lower max_new_tokens or raise model.max_length"
            )
        if raw:
            ids = encode_raw(prompts, self.tokenizer, room)
        else:
            ids = encode_prompts(prompts, self.tokenizer, self.prompt_format, room, begun=begun)
        mine: dict[int, str] = {}
        tokens = int(self.generation_memory * 2**30 / self.cache_bytes())
        batches = batches_of_prompts([len(x) for x in ids], max_new_tokens, tokens=tokens)
        with self.evaluating(), self._cached_attention():
            for batch in self._pieces(batches, description):
                choose: Choice = likeliest
                if sampling is not None:
                    choose = drawn_of(sampling, batch, max_new_tokens, self.device)
                texts = self._decoded([ids[i] for i in batch], max_new_tokens, choose)
                mine.update(zip(batch, texts, strict=True))
        answers = gather_in_order(mine, len(prompts))
        return [text.strip() for text in answers] if stripped else answers

    def beginnings(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Each text up to its first `tokens` tokens, those counted that the tokenizer adds."""
        encoded = self.tokenizer(list(texts), add_special_tokens=True, verbose=False)["input_ids"]
        cut = [ids[:tokens] for ids in encoded]
        return self.tokenizer.batch_decode(cut, skip_special_tokens=True)

    def packs(self, rows: Sequence[Row], description: str) -> Iterator[Rows]:
        """This rank's part of `rows` in packs; what rows begin with alike is read once a pack."""
        shares = self.shares_beginnings()
        packs = packs_of(rows, tokens=self.tokens_per_micro_batch, shares=shares)
        packed = pack if shares else Rows.pack
        for piece in self._pieces(packs, description):
            yield packed(piece, device=self.device)

    def _pieces(self, pieces: list[T], description: str) -> Iterator[T]:
        """This rank's pieces, to be worked through; raises Asked where a signal is heeded.

        Every rank asks after every piece, and once more where it has one fewer: all leave together.
        Who goes through them calls no collective of its own in between, where a signal is heeded.
        """
        mine = self._share(pieces)
        for piece in progress(mine, description=description):
            yield piece
            leave()
        if len(mine) < self._most(pieces):
            leave()

    def _most(self, pieces: list[T]) -> int:
        """How many pieces a rank has at most: each has so many, or one fewer."""
        return -(-len(pieces) // world_size())

    def _share(self, pieces: list[T]) -> list[T]:
        """This rank's pieces. With partitioned weights every rank must run equally many."""
        mine = pieces[rank() :: world_size()]
        missing = self._most(pieces) - len(mine)
        return mine + [pieces[0]] * missing if self.partitioned else mine

    @contextmanager
    def _cached_attention(self) -> Iterator[None]:
        """Decoding keeps keys and values and pads on the left, which packed attention does not."""
        self.attend("sdpa")
        try:
            yield
        finally:
            self.attend(attention.NAME)

    def cache_bytes(self) -> int:
        """What decoding keeps of one token."""
        return bytes_per_token(self.module)

    def decoding(self) -> Decoding:
        """The forward passes of one batch's answers, from the start."""
        return Decoding(self.module)

    def _decoded(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, choose: Choice
    ) -> list[str]:
        """The answers of one batch."""
        answers = decode(
            self.decoding(),
            prompts,
            max_new_tokens,
            choose,
            ends=self.end_ids(),
            padding=self.padding_id(),
            device=self.device,
            anyone=self._anyone,
        )
        return list(self.tokenizer.batch_decode(answers, skip_special_tokens=True))

    def _anyone(self, left: int) -> bool:
        """Whether any row goes on: of any rank, where all must run the same forward passes.

        Not so at a signal that is heeded: nobody will look at the answers.
        """
        if heard(together=self.partitioned):
            return False
        if not self.partitioned:
            return left > 0
        return bool(sum_over_ranks(torch.tensor(float(left), device=self.device)) > 0)

    def positions(self) -> int:
        """How many positions the model knows; what no config says is taken as max_length."""
        known = getattr(self.module.config, "max_position_embeddings", None)
        return max(self.max_length, known or 0)

    def end_ids(self) -> list[int]:
        """Every token that ends an answer: chat models have several."""
        own = self.module.generation_config.eos_token_id if self.module.generation_config else None
        listed = own if isinstance(own, list) else [] if own is None else [own]
        return sorted({*listed, self.tokenizer.eos_token_id})

    def padding_id(self) -> int:
        """The token that fills rows of a batch up; nothing looks at it."""
        padding = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if padding is None else padding)

    # ---- on disk ---------------------------------------------------------------------------------

    def save(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        *,
        module: transformers.PreTrainedModel | None = None,
    ) -> None:
        """Write a transformers model: safetensors, tokenizer, generation config; appears whole.

        `weights`: the full state dict by the names of `module` (default: the model's own), as
        `Engine.state_dict` and `Tuning.export` give it.
        """
        written = self.module if module is None else module
        folder = folder.resolve()  # a link stays, and what it leads to is written
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        written.save_pretrained(partial, state_dict=dict(weights), safe_serialization=True)
        self.tokenizer.save_pretrained(partial)
        put_in_place(partial, folder)
