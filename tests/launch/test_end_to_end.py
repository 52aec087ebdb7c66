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
GENTLE = {
    "grad_diff": ["trainer.retain_weight=10", "optimizer.learning_rate=5e-4"],
    "simnpo": ["optimizer.learning_rate=1e-3"],
}
"""Methods at strengths at which they forget less than those."""
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


@pytest.fixture
def ordered(measured, shell, evaluation, place: Path) -> dict[str, dict[str, Any]]:
    """The metrics of target, gold, two methods that forget all and two that forget less."""
    for name, settings in GENTLE.items():
        if not (place / name).exists():
            ended = shell.run(
                *("train", "benchmark=mini_small", f"trainer={name}", f"output={place / name}"),
                *("batch_size=16", "optimizer.schedule=linear", "optimizer.warmup=0.1"),
                *(f"cache={place / 'cache'}", *SMALLER, *settings),
            )
            assert ended.code == 0, ended.err
    return measured | {name: evaluation(place / name)["metrics"] for name in GENTLE}


def test_every_metric_of_what_is_known_finds_most_in_the_target_and_less_in_all_others(
    ordered,
) -> None:
    """That is what a metric is for; a new one must be put into one of these lists, or fails."""
    found = {name for name in ordered["target"] if name.startswith(("forget/", "mia/", "smia/"))}
    higher = {
        *("forget/rouge", "forget/exact_match", "forget/probability", "forget/right_share"),
        *("forget/extraction_strength", "forget/exact_memorization", "forget/answer_share"),
        *("forget/paraphrased_probability", "forget/paraphrased_rouge"),
        *("forget/knowledge", "forget/biography/knowledge", "forget/story/knowledge"),
        *("forget/regurgitation", "forget/biography/regurgitation", "forget/story/regurgitation"),
        *("mia/auc", "mia/zlib_auc", "mia/min_k_auc", "mia/min_k_plus_plus_auc"),
        "mia/reference_auc",
    }
    lower = {
        *("forget/nll", "forget/zlib", "forget/min_k", "forget/min_k_plus_plus"),
        *("forget/paraphrased_nll", "mia/score"),
        *("smia/loss", "smia/zlib", "smia/min_k", "smia/min_k_plus_plus"),
    }
    # means of min(R, 1/R), which say how near a ratio is to 1 from either side; and no knowledge
    neither = {"forget/truth_ratio", "forget/fluency"}
    assert found == higher | lower | neither

    for sign, names in ((1, higher), (-1, lower)):
        for name in names:
            known = {model: sign * metrics[name] for model, metrics in ordered.items()}
            target, gold = known.pop("target"), known.pop("gold")
            assert target > gold, name
            most = target + 0.02 * abs(target)  # of probabilities of rows that both know
            assert all(value <= most for value in known.values()), (name, known)


def test_what_forgets_less_is_found_to_know_more(ordered) -> None:
    for name in (
        *("forget/rouge", "forget/probability", "forget/extraction_strength", "mia/auc"),
        *("forget/exact_memorization", "forget/regurgitation", "mia/min_k_auc"),
    ):
        gentle = min(ordered[method][name] for method in GENTLE)
        thorough = max(ordered[method][name] for method in METHODS)
        assert ordered["target"][name] >= gentle > thorough, name
    for name in ("aggregate/memorization", "aggregate/overall_of_gold", "task_aggregate"):
        gentle = max(ordered[method][name] for method in GENTLE)
        thorough = min(ordered[method][name] for method in METHODS)
        assert ordered["target"][name] <= gentle < thorough, name
        if name != "task_aggregate":  # which counts forgetting more than the gold model as better
            assert thorough <= 1.1 * ordered["gold"][name], name


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
