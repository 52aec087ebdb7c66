"""Runs with a selection, and `launch.selection`, which shows one before it is trained on."""

from __future__ import annotations

import re
from pathlib import Path

import torch

QUICK = ["selection.assistants.steps=3", "selection.assistants.hidden_size=8", "max_steps=2"]
RUN = ["trainer=npo", "selection=su", *QUICK]


def selection_of(run: Path) -> bytes:
    return (run / "selection.pt").read_bytes()


def test_a_resumed_run_reads_the_tokens_that_were_selected_at_its_start(
    shell, tmp_path: Path, weights
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said = shell.train(*RUN, f"output={whole}").err
    shell.train(*RUN, f"output={cut}", "save_every=1", "evaluate=false")
    chosen = selection_of(cut)
    (cut / "run.json").unlink()  # as if it had been cut off after its last checkpoint
    again = shell.train(*RUN, f"output={cut}", "save_every=1", "evaluate=false", "resume=auto").err

    assert re.search(
        r"^selection: \d+ of \d+ answer tokens \(\d+%\) of \d+ forget", said, re.MULTILINE
    )
    assert selection_of(cut) == chosen == selection_of(whole)
    assert "resuming" in again
    assert "assistant" not in again
    mine, theirs = weights(whole), weights(cut)
    assert all(mine[name].equal(theirs[name]) for name in mine)
    values = torch.load(whole / "selection.pt", weights_only=True)
    assert set(values["weights"].tolist()) == {0.0, 1.0}


def test_the_selected_tokens_stand_in_brackets(shell) -> None:
    alone = ["selection=su_ngram", "selection.left=0", "selection.right=0"]
    shown = shell.run("selection", *shell.small(*alone, "rows=3"))

    assert shown.code == 0, shown.err
    titles = re.findall(r"^(\S+): (\d+) of (\d+) tokens$", shown.out, re.MULTILINE)
    assert len(titles) == 3
    answers = re.findall(r"^A: ?(.*)$", shown.out, re.MULTILINE) or [shown.out]
    assert any("[" in answer for answer in answers)
    assert "[<bos>" not in shown.out
    assert "selection: " in shown.err


def test_the_scores_can_be_listed(shell) -> None:
    shown = shell.run("selection", *shell.small("selection=su_ngram", "rows=2", "scores=true"))

    assert shown.code == 0, shown.err
    scores = [float(s) for s in re.findall(r"│ +(\d\.\d{3})", shown.out)]
    assert len(scores) > 4
    assert set(scores) <= {s for s in scores if 0 <= s <= 1}
    assert "'<eos>'" in shown.out
    assert re.search(r"\d\.\d{3} ?\*", shown.out), "the selected ones carry a star"


def test_a_run_shows_what_it_was_trained_on(shell, tmp_path: Path) -> None:
    shell.train(*RUN, f"output={tmp_path}", "evaluate=false")
    shown = shell.run("selection", "--config", str(tmp_path / "config.yaml"), "rows=1")

    assert shown.code == 0, shown.err
    assert "assistant" not in shown.err
    assert len(re.findall(r"^\S+: \d+ of \d+ tokens$", shown.out, re.MULTILINE)) == 1


def test_mistakes_are_one_line(shell, tmp_path: Path) -> None:
    small = shell.small(f"output={tmp_path / 'run'}", "max_steps=1")
    nothing = ("selection=su_ngram", "selection.kappa=1000")

    assert "leaves no token of any" in shell.mistake("train", *small, *nothing).split("\n")[-1]
    assert shell.mistake("train", *small, "trainer=finetune", "selection=su").startswith(
        "selection=su selects among the tokens to forget, but trainer=finetune forgets nothing"
    )
    assert shell.mistake("train", *small, "selection=su", "selection.threshold=2").startswith(
        "selection.threshold must be in [0, 1) or null, got 2"
    )
    # the last cache holds no target model, and none is made
    assert shell.mistake("selection", *small, f"cache={tmp_path}", "selection=none").startswith(
        "selection=none selects every token; type selection=su"
    )
    assert shell.mistake("selection", *small, "rows=0") == "rows must be at least 1, got 0"
