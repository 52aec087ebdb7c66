"""The rows of a run whose method prefers other answers: pairs, their names, and where they stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

from framework import Example, Row, build, compose
from framework.config import part_of
from framework.errors import DataError
from framework.preferred import refusal
from launch.rows import training_rows, training_texts
from launch.settings import CONFIGS, RunSettings

ONE = Example("a", "t3 t4", "t5 t6", fields={"other": "t7 t8 t9"})
TWO = Example("b", "t10", "t11", fields={"other": ["t12", "t13 t14"]})
FIELD = ["trainer.preferred.source=field", "trainer.preferred.field=other"]


def forget_rows(folder: Path, examples: list[Example], *settings: str) -> list[Row]:
    """The forget rows of `trainer=dpo`."""
    config = compose("train", ["trainer=dpo", *settings], configs=CONFIGS, schema=RunSettings)
    texts = {"forget": examples, "retain": []}
    return training_rows(config, texts, tiny.language_model(), folder=folder)["forget"]


def words(row: Row) -> str:
    return str(tiny.tokenizer().decode(row.input_ids))


def test_each_text_of_a_field_makes_a_pair(tmp_path: Path) -> None:
    rows = forget_rows(tmp_path, [ONE, TWO], *FIELD)
    assert [row.id for row in rows] == ["a", "b#1", "b#2"]
    assert [row.preferred.id for row in rows] == ["a/preferred", "b#1/preferred", "b#2/preferred"]
    assert words(rows[0]) == "<bos> t3 t4 t5 t6 <eos>"
    assert words(rows[0].preferred) == "<bos> t3 t4 t7 t8 t9 <eos>"
    assert rows[0].preferred.weights == (0, 0, 0, 1, 1, 1, 1)
    assert [words(row) for row in rows[1:]] == ["<bos> t10 t11 <eos>"] * 2
    assert words(rows[2].preferred) == "<bos> t10 t13 t14 <eos>"


@pytest.mark.parametrize("trainer", ["npo", "finetune"])
def test_the_parts_of_the_forget_rows_are_all_of_them_in_their_order(trainer: str) -> None:
    def forget(part: str) -> list[str]:
        settings = [f"trainer={trainer}", "benchmark=mini_small", f"forget_part={part}"]
        if trainer == "finetune":
            settings.append("finetune_on=forget")
        config = compose("train", settings, configs=CONFIGS, schema=RunSettings)
        texts = training_texts(config, build(config.benchmark), part_of(config.trainer)[0])
        return [row.id for row in texts["forget" if trainer == "npo" else "retain"]]

    whole, parts = forget("null"), [forget(f"{k}/5") for k in range(1, 6)]
    assert [row for part in parts for row in part] == whole
    assert {len(part) for part in parts} <= {len(whole) // 5, len(whole) // 5 + 1}


def test_by_default_a_row_is_paired_with_its_own_refusal(tmp_path: Path) -> None:
    (row,) = forget_rows(tmp_path, [ONE], "seed=3")
    same = Example("x", ONE.prompt, refusal(ONE, 3))
    (right,) = forget_rows(tmp_path, [same], "seed=3")
    assert row.preferred.input_ids == right.input_ids
    assert list(tmp_path.iterdir()) == []


def test_ids_that_look_like_those_of_pairs_are_refused(tmp_path: Path) -> None:
    third = Example("b#1", "t10", "t11", fields={"other": "t12"})
    with pytest.raises(DataError, match="give the rows other ids"):
        forget_rows(tmp_path, [TWO, third], *FIELD)


MADE_UP = [
    *("trainer=altpo", "trainer.preferred.count=2", "trainer.preferred.max_new_tokens=6"),
    *("trainer.preferred.prompt={prompt}", "trainer.preferred.temperature=2", "evaluate=false"),
]


def test_made_up_answers_stay_with_the_run_and_are_found_again(shell, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*MADE_UP, f"output={folder}", "epochs=1", "save_every=1"]
    dry = shell.train(*settings, "--dry-run").out
    shell.train(*settings)
    answers = json.loads((folder / "preferred.json").read_text())["answers"]
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    rows = sum(len(texts) for texts in answers.values())

    assert {len(texts) for texts in answers.values()} <= {1, 2}  # 1: nothing but the truth
    assert rows > len(answers)
    assert steps == -(-rows // 4)
    assert f"rows to learn from (forget) │ {2 * len(answers)}" in " ".join(dry.split())

    reference = (folder / "reference/log_probs.safetensors").read_bytes()
    shutil.rmtree(folder / "model")  # as if it had been stopped before its end
    (folder / "run.json").unlink()
    stored = (folder / "preferred.json").stat().st_mtime_ns
    assert f"resuming {folder} at step {steps}" in shell.train(*settings, "resume=auto").err
    assert (folder / "preferred.json").stat().st_mtime_ns == stored
    assert (folder / "reference/log_probs.safetensors").read_bytes() == reference
