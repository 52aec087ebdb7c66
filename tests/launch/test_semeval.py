"""SemEval-2025 task 4's entry point on a tiny model: a whole model whenever the run is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lume_folder
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.semeval import unlearn

ROOT = Path(__file__).parents[2]
TINY = ["model.max_length=64", "benchmark.max_new_tokens=3", "batch_size=4", "cache=none"]
QUICK = [*TINY, "max_steps=3", "evaluate_every=1", "evaluate_rows=6"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contest's directories: one with JSON lines, one with both kinds of files."""
    folder = tmp_path_factory.mktemp("contest")
    for split in ("forget", "retain"):
        (folder / split).mkdir()
        lume_folder.write(folder / split / f"{split}.jsonl", lume_folder.rows(split))
    return folder


@pytest.fixture
def places(shell, place: Path, tmp_path: Path) -> list[str]:
    """The function's four arguments; the model is made once."""
    made = place / "made"
    if not made.exists():
        shell.train(f"output={made}", "max_steps=1", "evaluate=false", "save_every=0")
    model = str(made / "model")
    return [model, str(tmp_path / "out"), str(place / "forget"), str(place / "retain")]


def loaded(folder: Path) -> AutoModelForCausalLM:
    """The model that transformers reads there; it answers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("When was Ada of forget born?", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]
    return model


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def test_the_contests_function_writes_a_model_and_its_record_beside_it(
    places: list[str], shell, weights: Callable, tmp_path: Path
) -> None:
    unlearn(*places, settings=[*QUICK, "optimizer.learning_rate=1e-2"])

    out, run = tmp_path / "out", tmp_path / "out.run"
    after, before = loaded(out).state_dict(), loaded(Path(places[0])).state_dict()
    assert not same(after, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run"]
    assert not out.is_symlink()
    config = (run / "config.yaml").read_text()
    assert "name: npo" in config
    assert "time_limit: 55" in config
    record = json.loads((run / "run.json").read_text())
    assert record["step_of_model"] == json.loads((run / "best.json").read_text())["step"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "eval/lume_6_rows/task_aggregate" in x] == [1, 2, 3]


def test_a_start_that_ended_before_the_link_was_made_is_made_up_for(
    places: list[str], tmp_path: Path
) -> None:
    (tmp_path / "out.run").mkdir()
    unlearn(*places, settings=[*TINY, "max_steps=1", "evaluate_every=0", "keep_best=null"])

    loaded(tmp_path / "out")
    assert (tmp_path / "out.run" / "model").is_symlink()


def test_parquet_does_as_well(places: list[str], weights: Callable, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    others = []
    for split in ("forget", "retain"):
        (tmp_path / split).mkdir()
        table = pa.Table.from_pylist(lume_folder.rows(split))
        parquet.write_table(table, tmp_path / split / f"{split}.parquet")
        others.append(str(tmp_path / split))
    settings = [*TINY, "max_steps=1", "evaluate_every=0", "keep_best=null"]
    unlearn(*places, settings=settings)
    unlearn(places[0], str(tmp_path / "other"), *others, settings=settings)

    assert same(loaded(tmp_path / "out").state_dict(), loaded(tmp_path / "other").state_dict())


DIES = """
import os, signal, sys
from framework import language_model
from launch.entry import run_entry
from launch.semeval import main

put, written = language_model.put_in_place, []

def die(new, folder):
    written.append(new)
    if len(written) == 2:  # the second model is written beside the first
        os.kill(os.getpid(), signal.SIGKILL)
    put(new, folder)

language_model.put_in_place = die
run_entry(main)
"""


def test_a_kill_while_a_model_is_written_leaves_the_one_before(
    places: list[str], tmp_path: Path
) -> None:
    settings = [*QUICK, "optimizer.learning_rate=1e-2"]
    ended = subprocess.run(
        [sys.executable, "-c", DIES, *places, *settings],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=280,
    )

    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "out.partial").is_dir()  # the second, which nobody finds
    first = loaded(tmp_path / "out").state_dict()
    assert not same(first, loaded(Path(places[0])).state_dict())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": ["time_limit=1e-6"]}, "time_limit=1e-06 leaves no time for a step: getting "),
        ({"settings": ["trainer=npoo"]}, "no trainer is called 'npoo'; did you mean 'npo'?"),
        ({"settings": ["output=x"]}, "output=x is said by the four paths; leave it out"),
        ({2: "nowhere"}, "'nowhere' is neither a file nor a folder here"),
        ({0: "nowhere"}, "no model could be loaded from 'nowhere'"),
        ({1: "{place}"}, "{place} is not empty; give a folder for the new model"),
        ({3: None}, "give INPUT_MODEL OUTPUT_MODEL FORGET_DIR RETAIN_DIR, then settings as key="),
    ],
)
def test_mistakes_are_one_line(
    changed: dict, said: str, places: list[str], place: Path, shell
) -> None:
    given: list[str | None] = [*places]
    for index, text in changed.items():
        if isinstance(index, int):
            given[index] = text and text.format(place=place)
    found = shell.mistake(
        "semeval", *(x for x in given if x is not None), *TINY, *changed.get("settings", [])
    )

    assert found.startswith(said.format(place=place))


def answers(place: Path, change: Callable[[dict], str | None]) -> Path:
    """A file of answers to all rows, as `change` gives them; None leaves one out."""
    rows = [row for split in ("forget", "retain") for row in lume_folder.rows(split)]
    given = [(row["id"], change(row)) for row in rows]
    file = place / "answers.jsonl"
    lume_folder.write(file, [{"id": i, "answer": x} for i, x in given if x is not None])
    return file


def test_a_file_of_answers_has_its_task_scores(shell, tmp_path: Path) -> None:
    folder = lume_folder.make(tmp_path / "rows")
    file = answers(tmp_path, lambda row: row["output"] if "retain" in row["id"] else "x")
    ended = shell.run("semeval", "score", str(file), f"benchmark.path={folder}")

    assert ended.code == 0, ended.err
    shown = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in table_of(ended.out)}
    assert shown["retain/Task2/knowledge"] == "1.000"
    assert shown["forget/Task1/regurgitation"] == "0.000"
    assert shown["task_aggregate"] == "1.000"
    assert shown["task_aggregate_terms"] == "12.000"


def table_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("│")]


def test_answers_that_do_not_fit_the_rows_are_named(shell, tmp_path: Path) -> None:
    folder = lume_folder.make(tmp_path / "rows")
    file = answers(tmp_path, lambda row: None if row["id"] == '"forget-0"qa0' else "x")
    file.write_text(file.read_text() + '{"id": "99sc1", "answer": "y"}\n')
    said = shell.mistake("semeval", "score", str(file), f"benchmark.path={folder}")

    assert said == (
        "the answers do not fit the benchmark's rows: 1 rows have no answer: '\"forget-0\"qa0'; "
        "1 ids are of no row: '99sc1'"
    )
    file.write_text(file.read_text() * 2)
    twice = shell.mistake("semeval", "score", str(file), f"benchmark.path={folder}")
    assert twice.startswith(f"{file}: 24 ids name more than one row: ")
    nowhere = shell.mistake("semeval", "score", "nowhere.jsonl", f"benchmark.path={folder}")
    assert nowhere == "there is no file of answers at nowhere.jsonl"
