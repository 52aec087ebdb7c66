"""The demo, small: a target that knows everything, and methods that make it forget what they must.

What is measured, greedy answers against the truth (ROUGE-L recall), on rows to forget and to keep:
the target knows both; the gold model, which never saw the rows to forget, shows what forgetting
comes to; NPO and BLUR x NPO reach it and keep the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

METHODS = {"npo": "npo", "blur-npo": "blur x npo"}
SMALLER = [
    *("benchmark.authors=15", "benchmark.biographies=4", "benchmark.stories=4"),
    *("benchmark.world=6", "benchmark.background=2", "benchmark.retain_rows=30"),
    *("benchmark.max_new_tokens=50", "tracker=none"),
    *("optimizer.learning_rate=5e-4", "epochs=10"),  # half of the demo's, for a tenth of its rows
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo of this file leaves everything."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def demo(shell, place: Path) -> Callable[..., str]:
    """Runs the demo into a folder, and gives what it said."""

    def run(output: str, *settings: str) -> str:
        ended = shell.run(
            *("demo", "--benchmark", "mini_small", "--cache", str(place / "cache")),
            *("--output", str(place / output), "--report", str(place / f"{output}-report")),
            *(*SMALLER, *settings),
        )
        assert ended.code == 0, ended.err
        return ended.err

    return run


@pytest.fixture
def measured(demo, evaluation, place: Path) -> dict[str, dict[str, Any]]:
    """The metrics of all four models; the demo is run once."""
    if not (place / "runs").exists():
        (place / "said.txt").write_text(demo("runs"))
    runs = {name: evaluation(place / "runs" / name) for name in METHODS}
    compared = {role: runs["npo"][role]["metrics"] for role in ("target", "gold")}
    return compared | {name: run["metrics"] for name, run in runs.items()}


def test_the_target_knows_what_is_to_be_forgotten_and_the_gold_model_does_not(measured) -> None:
    assert measured["target"]["forget/rouge"] > 0.95
    assert measured["target"]["retain/rouge"] > 0.95
    assert measured["gold"]["retain/rouge"] > 0.85
    assert measured["gold"]["forget/rouge"] < 0.4


@pytest.mark.parametrize("method", METHODS)
def test_unlearning_forgets_what_the_gold_model_never_knew(method: str, measured) -> None:
    forgotten, never_known = (measured[name]["forget/rouge"] for name in (method, "gold"))

    assert forgotten == pytest.approx(never_known, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_unlearning_keeps_the_rest(method: str, measured) -> None:
    assert measured[method]["retain/rouge"] >= 0.85


def test_the_report_shows_all_four(measured, place: Path) -> None:
    page = (place / "runs-report" / "index.html").read_text()

    for label in ("target", "gold", *METHODS.values()):
        assert label in page, label
    assert (place / "runs-report" / "table.csv").is_file()
    assert f"report: {place / 'runs-report' / 'index.html'}" in (place / "said.txt").read_text()


def test_a_second_demo_starts_at_unlearning(measured, demo, evaluation, place: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in (place / "cache").rglob("*")}
    first, second = (place / "said.txt").read_text(), demo("again", "epochs=1")

    assert "fine-tuning target and gold" in first
    assert "fine-tuning target and gold" not in second
    assert {path: path.stat().st_mtime_ns for path in (place / "cache").rglob("*")} == made
    assert evaluation(place / "again" / "npo")["target"]["metrics"] == measured["target"]
