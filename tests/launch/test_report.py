"""`python -m launch.report`, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two evaluated runs, where commands are typed."""
    monkeypatch.chdir(tmp_path)
    for label, rouge in (("NPO", 0.25), ("GradDiff", 0.5)):
        run = tmp_path / "runs" / label.lower()
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("seed: 0\n")
        (run / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "train/forget/loss": 1.0}\n')
        evaluation = {
            "benchmark": "mini",
            "label": label,
            "headline": ["forget/rouge", "retain/rouge"],
            "directions": {"forget/rouge": "lower", "retain/rouge": "higher"},
            "metrics": {"forget/rouge": rouge, "retain/rouge": None},
            "generations": [],
            "target": None,
            "gold": None,
        }
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    return tmp_path


def test_the_table_is_printed_and_the_report_written(workplace: Path) -> None:
    typed = ["launch.report", "runs/npo", "runs/graddiff", "--output", "reports/first"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", *typed],
        env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(workplace), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert ended.returncode == 0, ended.stderr
    assert "0.250 *" in ended.stdout
    assert "undefined" in ended.stdout
    assert ended.stderr.splitlines()[-1] == "report: reports/first/index.html"
    found = sorted(path.name for path in (workplace / "reports/first").iterdir())
    assert found == ["index.html", "plots", "report.md", "table.csv"]


def test_without_output_the_report_is_named_after_the_time(workplace: Path, shell) -> None:
    ended = shell.run("report", "runs/npo")

    assert ended.code == 0, ended.err
    (page,) = workplace.glob("reports/20*-*-*-*/index.html")
    assert str(page.relative_to(workplace)) in ended.err


def test_what_a_glob_finds_beside_runs_is_named_and_left_out(workplace: Path, shell) -> None:
    (workplace / "runs/npo.log").write_text("")
    paths = sorted(str(path.relative_to(workplace)) for path in workplace.glob("runs/*"))
    ended = shell.run("report", *paths, "--html", "--output", "out")

    assert ended.code == 0, ended.err
    assert "note: runs/npo.log is no run: left out\n" in ended.err
    assert "retain/rouge of NPO is undefined" in ended.err
    assert (workplace / "out/index.html").is_file()


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(workplace: Path, shell) -> None:
    ended = shell.run("report", "runs/nop")

    assert ended.code == 2
    assert ended.err == "error: there is no folder runs/nop\n"

    (workplace / "runs/nop").mkdir()
    ended = shell.run("report", "runs/no[p]")  # as PowerShell and quotes leave it
    assert ended.err == "error: runs/nop is not a run: it has no config.yaml\n"


def test_help_shows_an_example(workplace: Path, shell) -> None:
    ended = shell.run("report", "--help")

    assert ended.code == 0
    assert "python -m launch.report runs/npo runs/grad_diff --output reports/first" in ended.out
