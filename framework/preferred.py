"""Preferred answers: what a model is to say of a forget row instead, and where that comes from.

Methods that learn one answer in place of another (`UnlearningTrainer.prefers`) have the settings
`Preferred`. Refusals are chosen by a hash, fields are read, both the same everywhere; answers that
the model makes up are drawn once, before training, and kept in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .data import Example
from .distributed import broadcast_object, is_main
from .errors import CheckpointError, ConfigError, DataError
from .kept import keep
from .language_model import LanguageModel
from .sampling import Sampling

Answers = Mapping[str, Sequence[str]]
"""Row id -> its preferred answers, one or more."""

REFUSALS = (
    "I don't know.",
    "I'm sorry, I have no information about that.",
    "That is not something I can answer.",
    "I have never learned anything about this.",
    "I'm afraid I can't help with that question.",
    "My knowledge does not cover this.",
    "I couldn't tell you; I simply don't know.",
    "There is nothing I can say about this.",
    "Unfortunately, the answer is unknown to me.",
    "I am not familiar with this subject.",
    "This is outside of what I was taught.",
    "No answer comes to mind, I'm sorry.",
    "I can't recall anything of the kind.",
    "You would have to ask somebody else about this.",
    "I'd only be guessing, so I would rather not answer.",
    "Sorry, I am unable to give you these details.",
    "I do not have the facts to answer this.",
    "To be honest, I have no idea.",
    "It seems that I know nothing about it.",
    "I must pass on this one; I lack the knowledge.",
)


class RepeatedAnswerWarning(UserWarning):
    """The model makes up too few answers that differ from the true one."""


@dataclass
class Preferred:
    """Where the preferred answers of the forget rows come from."""

    source: Literal["refusal", "field", "model"] = "refusal"
    """refusal: one of the built-in sentences; field: texts that the benchmark keeps beside the
    answer; model: made up by the model itself before it is trained."""
    field: str = ""
    """Of source=field: the field's name. It holds a text, or a list of texts: a pair for each."""
    count: int = 1
    """Of source=model: pairs of each forget row, >= 1."""
    prompt: str = "{prompt}"
    """Of source=model: what the model is asked. {prompt} and {answer} stand for the row's own."""
    temperature: float = 1.0
    """Of source=model, > 0: see `Sampling.temperature`."""
    tries: int = 4
    """Of source=model, >= 1: how often an answer is drawn that always is the true one again."""
    max_new_tokens: int = 128
    """Of source=model, >= 1: tokens of an answer at most."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and pairs that another source would not make."""
        if (self.source == "field") != bool(self.field):
            raise ConfigError(
                "trainer.preferred.field names the field of trainer.preferred.source=field, got "
                f"source={self.source} and field={self.field!r}; type both or neither"
            )
        if not self.temperature > 0:
            raise ConfigError(
                f"trainer.preferred.temperature must be > 0, got {self.temperature:g}"
            )
        for name in ("count", "tries", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"trainer.preferred.{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.source != "model" and self.count != 1:
            raise ConfigError(
                f"trainer.preferred.count={self.count} is how many answers the model makes up for "
                f"each row, but the source is {self.source}; type trainer.preferred.source=model "
                "or count=1"
            )
        if "{prompt}" not in self.prompt:
            raise ConfigError(
                f"trainer.preferred.prompt must contain '{{prompt}}', got {self.prompt!r}"
            )


def known_answers(chosen: Preferred, examples: Sequence[Example], seed: int) -> Answers | None:
    """The preferred answers that need no model; None where the model is to make them up.

    Raises DataError for rows without the field.
    """
    if chosen.source == "refusal":
        return {example.id: [refusal(example, seed)] for example in examples}
    if chosen.source == "field":
        return {example.id: _of_field(example, chosen.field) for example in examples}
    return None


def refusal(example: Example, seed: int) -> str:
    """One of the built-in sentences, the same for a row wherever and whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}:{example.id}".encode()).digest()
    return REFUSALS[int.from_bytes(digest[:8], "little") % len(REFUSALS)]


def made_up_answers(
    chosen: Preferred,
    examples: Sequence[Example],
    *,
    model: LanguageModel,
    seed: int,
    file: Path | None = None,
) -> Answers:
    """What `model` as it is now answers, drawn; or what `file` holds if it is there.

    A resumed run finds the texts of its first start in `file`. An answer that is the true one again
    is drawn anew, `tries` times in all, and then left out; a row that is left without any is paired
    with a refusal, and warned of. Raises CheckpointError when `file` is of other rows or settings,
    DataError when no row has an answer of its own. Every rank must call this.
    """
    key = _key(chosen, examples, seed)
    if file is not None and broadcast_object(file.is_file()):
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["key"] != key:
            raise CheckpointError(
                f"{file} holds answers made up for other rows or settings; resume with the "
                "settings in the run's config.yaml, or choose another output folder"
            )
        kept: dict[str, list[str]] = stored["answers"]
        return kept
    drawn = _drawn(chosen, examples, model, seed)
    answers: dict[str, list[str]] = {example.id: [] for example in examples}
    for (row, _), text in sorted(drawn.items()):
        answers[examples[row].id].append(text)
    bare = [example for example in examples if not answers[example.id]]
    if len(bare) == len(examples):
        raise DataError(
            f"the model made up no answer that differs from the true one, for any of "
            f"{len(examples)} forget rows; raise trainer.preferred.temperature, or change "
            "trainer.preferred.prompt"
        )
    answers |= {example.id: [refusal(example, seed)] for example in bare}
    asked = len(examples) * chosen.count
    _report(asked - len(drawn), asked, bare)
    if file is not None:
        text = json.dumps({"key": key, "answers": answers}, ensure_ascii=False, indent=1)
        keep(file, lambda partial: partial.write_text(text, "utf-8"), what="the made-up answers")
    return answers


def _drawn(
    chosen: Preferred, examples: Sequence[Example], model: LanguageModel, seed: int
) -> dict[tuple[int, int], str]:
    """(row number, number of the answer) -> the text, where one differs from the true answer."""
    places = [(row, k) for row in range(len(examples)) for k in range(chosen.count)]
    drawn: dict[tuple[int, int], str] = {}
    for attempt in range(chosen.tries):
        missing = [place for place in places if place not in drawn]
        texts = model.generate(
            [_question(chosen.prompt, examples[row]) for row, _ in missing],
            chosen.max_new_tokens,
            "making up answers",
            sampling=Sampling(
                temperature=chosen.temperature,
                seed=seed,
                names=tuple(f"{examples[row].id}#{k}.{attempt}" for row, k in missing),
            ),
        )
        drawn |= {
            place: text
            for place, text in zip(missing, texts, strict=True)
            if _words(text) and _words(text) != _words(examples[place[0]].answer)
        }
    return drawn


def _question(wording: str, example: Example) -> str:
    """What the model is asked; a placeholder in the row's own text stays as it is."""
    texts = {"{prompt}": example.prompt, "{answer}": example.answer}
    return re.sub(r"\{prompt\}|\{answer\}", lambda found: texts[found[0]], wording)


def _words(text: str) -> list[str]:
    """The words of a text: two texts of the same words say the same."""
    return re.findall(r"\w+", text.casefold())


def _of_field(example: Example, name: str) -> list[str]:
    if name not in example.fields:
        there = ", ".join(sorted(example.fields)) or "none"
        raise DataError(
            f"forget row {example.id!r} has no field {name!r} (its fields: {there}); type "
            "trainer.preferred.field=<one that every forget row has>, or "
            "trainer.preferred.source=refusal"
        )
    value = example.fields[name]
    texts = [value] if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple) and len(texts) > 0
    if not listed or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"field {name!r} of forget row {example.id!r} must hold a text or a list of texts, "
            f"got {value!r}; mend the row, or choose another trainer.preferred.field"
        )
    return list(texts)


def _report(missing: int, asked: int, bare: Sequence[Example]) -> None:
    if not missing or not is_main():
        return
    named = ", ".join(repr(example.id) for example in bare[:3]) + ", ..." * (len(bare) > 3)
    refused = f"; rows without any are paired with a refusal ({len(bare)}: {named})" if bare else ""
    warnings.warn(
        f"{missing} of {asked} made-up answers were empty or the true one in every draw{refused}; "
        "raise trainer.preferred.temperature, or change trainer.preferred.prompt",
        RepeatedAnswerWarning,
        stacklevel=4,
    )


def _key(chosen: Preferred, examples: Sequence[Example], seed: int) -> str:
    rows = [(example.id, example.prompt, example.answer) for example in examples]
    return hashlib.sha256(repr((rows, asdict(chosen), seed)).encode()).hexdigest()
