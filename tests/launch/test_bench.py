"""`launch.bench`: every way does the same work and says so; what is told of times, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.timing import Comparison, Timed, Way, in_turns


def test_every_way_of_an_evaluation_gives_the_same_and_says_so(shell, tmp_path: Path) -> None:
    small = [text for text in shell.small() if not text.startswith(("tracker=", "batch_size="))]
    run = ["rounds=1", "rows=3", "max_new_tokens=6", f"output={tmp_path}"]
    ended = shell.run("bench", "evaluation", *small, *run)
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {"hardware", "packages", "commit", "threads", "settings"} <= content.keys()
    scoring, answering = content["comparisons"]
    assert [way["way"] for way in scoring["ways"]] == [
        *("one by one", "padded batches of 32", "packed", "packed, beginnings read once")
    ]
    assert all(float(way["largest error (nats)"]) <= 1e-5 for way in scoring["ways"])
    tokens = [int(way["tokens read"]) for way in scoring["ways"]]
    assert tokens[1] > tokens[0] == tokens[2] > 1.5 * tokens[3]
    passes = [int(way["forward passes"]) for way in answering["ways"]]
    assert passes[0] > passes[1] >= passes[2]
    count = answering["count"]
    assert {way["equal answers"] for way in answering["ways"]} == {f"{count} of {count}"}
    assert all(len(way["seconds"]) == 1 for way in scoring["ways"])
    assert "| packed, beginnings read once |" in (tmp_path / "evaluation.md").read_text()
    assert "packed, beginnings read once" in ended.out


def test_what_to_measure_must_be_said_and_known(shell) -> None:
    assert "python -m launch.bench <count|evaluation" in shell.mistake("bench")
    assert "what to measure?" in shell.mistake("bench", "speed", "rows=3")
    assert "rounds must be >= 1" in shell.mistake("bench", "evaluation", "rounds=0")


def test_a_ratio_is_the_median_of_those_of_each_round() -> None:
    slow, fast = (
        Timed("slow", (4.0, 8.0, 6.0), (4.0, 4.0, 4.0), 0),
        Timed("fast", (1.0, 4.0, 2.0), (1.0, 1.0, 2.0), 0),
    )
    found = Comparison("x", "rows", 8, (slow, fast), ({"check": "a"}, {"check": "b"}))
    line = found.to_json()["ways"][1]
    assert line["times_faster"] == pytest.approx(3.0)
    assert (line["times_faster_lowest"], line["times_faster_highest"]) == (2.0, 4.0)
    assert line["rows_per_second"] == pytest.approx(4.0)
    assert line["times_less_cpu"] == pytest.approx(4.0)
    assert found.rows()[1] == ["fast", "4.0", "2.0 to 8.0", "3.00 (2.00 to 4.00)", "4.00", "b"]


def test_the_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    ways = [Way(name, lambda name=name: order.append(name)) for name in "ab"]
    timed = in_turns(ways, 2, description="x")
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [len(way.seconds) for way in timed] == [2, 2]
