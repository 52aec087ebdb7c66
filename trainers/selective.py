"""SU: selective unlearning (arXiv:2506.00876): forget the tokens that the forget rows alone teach.

Every forget loss then reads the chosen answer tokens only; the retain loss is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from framework import ConfigError, LanguageModel, Row, Selection
from framework.assistants import Recipe, given, probabilities, trained_pair
from framework.distributed import on_rank_zero
from framework.token_choice import (
    Decoder,
    above,
    adaptive_threshold,
    differences,
    ngram_scores,
    whole_words,
    with_context,
    words_of,
)


class SelectiveUnlearning(Selection):
    """Tokens on which the forget rows and the retain rows disagree, and their neighbors.

    A score per answer token t, then a threshold tau, the context, and whole words if asked:

        assistants  s_t = |p_A(y_t | before) - p_B(y_t | before)|: A knows the forget rows, B does
                    not (SU-LLM)
        ngram       s_t = |c_f(context, y_t) / c_f(context) - c_r(context, y_t) / c_r(context)|:
                    counts in the answers to forget and to retain, 0 for an unseen context, which
                    is the n - 1 tokens before in the answer (SU-Ngram)
        selected    s_t > tau; tau = mean + kappa * std of the row's scores where none is set

    There is no official code; scorers, tau and context are those of giorgosnikolaou's fork of
    open-unlearning. There A is the model before unlearning, B the pre-trained one, and of the
    context only what lies to the left is kept. Where no B is given, both are small models that are
    trained for it here (`framework.assistants`).
    """

    @dataclass
    class Config:
        """What is scored, and what is chosen by it."""

        scorer: Literal["assistants", "ngram"] = "assistants"
        """assistants: two models; ngram: counts, seconds on a CPU."""
        n: int = 3
        """Tokens of an n-gram, >= 1."""
        threshold: float | None = None
        """tau, in [0, 1); null: each row's own mean + kappa * std."""
        kappa: float = 0.0
        """Standard deviations above the row's mean score that the threshold lies at."""
        left: int = 2
        """Answer tokens before a selected one that are selected with it, >= 0."""
        right: int = 2
        """Answer tokens after it, likewise."""
        context_parity: bool = False
        """Select no tokens after, whatever `right` is: what the third party's routine does."""
        word_level: bool = False
        """Select a word whole if any token of it is selected; the end token is its own word."""
        ignorant: str | None = None
        """B, a folder or hub name with the model's vocabulary; null: A and B are trained."""
        knowing: str | None = None
        """A, beside a given B; null: the model before unlearning."""
        assistants: Recipe = field(default_factory=Recipe)
        """How A and B are trained."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers out of their range, and for half a pair."""
            for name, least in {"n": 1, "left": 0, "right": 0}.items():
                if getattr(self, name) < least:
                    raise ConfigError(
                        f"selection.{name} must be at least {least}, got {getattr(self, name)}"
                    )
            if self.threshold is not None and not 0 <= self.threshold < 1:
                raise ConfigError(
                    f"selection.threshold must be in [0, 1) or null, got {self.threshold:g}"
                )
            if self.knowing is not None and self.ignorant is None:
                raise ConfigError(
                    f"selection.knowing={self.knowing} has nothing to be compared with; give "
                    "selection.ignorant=<folder or hub name>, or neither"
                )

    def __init__(self, config: Config) -> None:
        """The settings have been checked."""
        self.config = config

    def scores(
        self, forget: Sequence[Row], retain: Sequence[Row], model: LanguageModel, *, seed: int
    ) -> list[list[float]]:
        """See `Selection.scores`."""
        config = self.config
        if config.scorer == "ngram":
            return ngram_scores(forget, retain, n=config.n)
        if config.ignorant is None:

            def compared() -> list[list[float]]:
                knowing, ignorant = trained_pair(
                    forget, retain, model, config.assistants, seed=seed
                )
                return differences(probabilities(knowing, forget), probabilities(ignorant, forget))

            return on_rank_zero(compared)

        def read(path: str) -> list[list[float]]:
            return on_rank_zero(lambda: probabilities(given(path, model), forget))

        knowing = config.knowing
        known = probabilities(model, forget) if knowing is None else read(knowing)
        return differences(known, read(config.ignorant))

    def token_weights(
        self, row: Row, scores: Sequence[float], tokenizer: Decoder
    ) -> Sequence[float]:
        """See `Selection.token_weights`."""
        config = self.config
        answer = [t for t, weight in enumerate(row.weights) if weight > 0]
        if not answer:
            return row.weights
        own = [scores[t] for t in answer]
        threshold = config.threshold
        chosen = above(
            own, adaptive_threshold(own, config.kappa) if threshold is None else threshold
        )
        right = 0 if config.context_parity else config.right
        chosen = with_context(chosen, left=config.left, right=right)
        if config.word_level:
            chosen = whole_words(chosen, words_of([row.input_ids[t] for t in answer], tokenizer))
        weights = [0.0] * len(row.weights)
        for t, c in zip(answer, chosen, strict=True):
            weights[t] = float(c)
        return weights
