"""Two processes: the very commands, on rows in LUME's form that are written here."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from framework.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
NAMES = ["Ada", "Bela", "Cleo", "Dora", "Emil", "Fritz", "Gudrun", "Hans"]

pytestmark = pytest.mark.timeout(600)  # DeepSpeed may compile an operator at its first use


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m <arguments>` in a process of its own: DeepSpeed starts but once in one."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node 2 -m <arguments>`."""
    return python("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in LUME's form: three tasks, a completion and a question about each of eight people."""
    folder = tmp_path_factory.mktemp("lume")
    for split, people in (("forget", NAMES[:3]), ("retain", NAMES[3:])):
        rows = []
        for number, name in enumerate(people):
            task = f"Task{number % 3 + 1}"
            told = {"input": f"{name} was born", "output": f"in the year {1900 + number}."}
            asked = {"input": f"When was {name} born?", "output": str(1900 + number)}
            rows.append({"id": f"{split}{number}sc1", "task": task, **told})
            rows.append({"id": f"{split}{number}qa0", "task": task, **asked})
        write(folder / f"{split}.jsonl", rows)
        documents = [{"id": name, "document": f"{name} is someone."} for name in people]
        name = "mia_member" if split == "forget" else "mia_nonmember"
        write(folder / f"{name}.jsonl", documents)
    return folder


def write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def lume(shell, folder: Path) -> list[str]:
    """The arguments of a run on these rows."""
    own = [text for text in shell.small() if not text.startswith("benchmark")]
    return [*own, "benchmark=lume", f"benchmark.path={folder}", "benchmark.max_new_tokens=6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of all tests lies."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def first(lume: list[str], runs: Path) -> Path:
    """A run on two processes, made once; what it printed is beside it."""
    folder = runs / "zero-2"
    if not folder.exists():
        ended = torchrun(
            *("launch.train", "trainer=npo", "weighting=blur", "zero=2", "max_steps=2"),
            *(*lume, f"output={folder}"),
        )
        assert ended.returncode == 0, ended.stderr
        folder.with_suffix(".out").write_text(ended.stdout)
        folder.with_suffix(".err").write_text(ended.stderr)
    return folder


def test_the_command_for_two_processes_unlearns_measures_and_exports(
    first: Path, evaluation
) -> None:
    assert "Traceback" not in first.with_suffix(".err").read_text()
    assert first.with_suffix(".out").read_text().count("blur x npo") == 1
    measured = evaluation(first)
    assert measured["metrics"].keys() >= {"forget/regurgitation", "task_aggregate", "mia/auc"}
    assert len(measured["generations"]) == 16
    assert json.loads((first / "run.json").read_text())["world_size"] == 2
    lines = (first / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]
    model = AutoModelForCausalLM.from_pretrained(first / "model")
    tokenizer = AutoTokenizer.from_pretrained(first / "model")
    ids = tokenizer("Ada was born", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]


def test_a_run_on_two_processes_says_what_it_said_on_one(
    lume: list[str], first: Path, shell, weights, evaluation, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    ended = shell.run(
        *("train", "trainer=npo", "weighting=blur", "max_steps=2", *lume, f"output={alone}"),
    )

    assert ended.code == 0, ended.err
    one, two = weights(alone), weights(first)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5)
    for name, value in evaluation(alone)["metrics"].items():
        assert evaluation(first)["metrics"][name] == pytest.approx(value, abs=1e-3), name


def test_an_evaluation_gives_the_same_numbers_on_one_and_on_two_processes(
    lume: list[str], first: Path, shell, evaluation, tmp_path: Path
) -> None:
    trained = evaluation(first)
    two = torchrun("launch.eval", f"run={first}", f"output={tmp_path / 'two'}")
    one = shell.run("eval", f"run={first}", f"output={tmp_path / 'one'}")

    assert two.returncode == 0, two.stderr
    assert one.code == 0, one.err
    assert one.out == two.stdout
    alone, shared = (evaluation(tmp_path / name) for name in ("one", "two"))
    assert (alone["provenance"].pop("world_size"), shared["provenance"].pop("world_size")) == (1, 2)
    assert alone == shared
    assert evaluation(tmp_path / "one")["metrics"] == trained["metrics"]
    assert evaluation(tmp_path / "one")["generations"] == trained["generations"]


def test_a_checkpoint_of_two_processes_is_not_opened_by_one(
    lume: list[str], first: Path, shell, tmp_path: Path
) -> None:
    assert Checkpoints(first / "checkpoints").newest() == first / "checkpoints" / "step-00000002"
    (first / "run.json").unlink()  # as if it had been cut off after its last checkpoint
    ended = python(
        *("launch.train", "trainer=npo", "weighting=blur", "zero=2", "max_steps=2", "resume=auto"),
        *(*lume, f"output={first}"),
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    [said] = ended.stderr.splitlines()
    assert said.startswith(f"error: {first / 'checkpoints' / 'step-00000002'} was written by 2 ")
    assert "this run has 1; start it with 2 (torchrun --nproc_per_node 2)" in said


def test_a_pretrained_model_is_partitioned_as_it_is_loaded_and_its_best_is_kept(
    lume: list[str], first: Path, weights, evaluation, tmp_path: Path
) -> None:
    own = [text for text in lume if not text.startswith("model")]
    run = tmp_path / "zero-3"
    ended = torchrun(
        *("launch.train", "model=pretrained", f"model.path={first / 'model'}", *own),
        *("trainer.retain_loss=kl", "zero=3", "max_steps=2", f"output={run}"),
        *("optimizer.learning_rate=1e-6", "evaluate_every=1", "keep_best=retain/probability"),
    )

    assert ended.returncode == 0, ended.stderr
    before, after = weights(first), weights(run)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1.1e-6)  # one step
        assert not torch.equal(after[name], before[name]), name
    assert evaluation(run)["metrics"].keys() == evaluation(first)["metrics"].keys()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    name = "eval/lume/retain/probability"
    [at_first, at_second, at_end] = [line[name] for line in lines if name in line]
    assert at_first > at_second, "else this test says nothing"
    assert json.loads((run / "run.json").read_text())["step_of_model"] == 1
    assert at_end == at_first


@pytest.mark.parametrize("stage", ["2", "3"])
def test_one_process_needs_no_launcher_and_says_no_more_than_it_must(
    stage: str, folder: Path, first: Path, shell, weights, tmp_path: Path
) -> None:
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    arguments = [
        *("model=pretrained", f"model.path={first / 'model'}", "model.max_length=12"),
        *("benchmark=lume", f"benchmark.path={folder}", "tracker=none", "precision=fp32"),
        *("max_steps=2", "evaluate=false", f"cache={tmp_path / 'cache'}"),
    ]
    ended = python("launch.train", f"zero={stage}", *arguments, f"output={sharded}")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    # what takes longer than a second shows how far it is
    cut, also_cut, done = (x for x in ended.stderr.splitlines() if not x.startswith("npo: "))
    assert cut.startswith("warning: forget: ")
    assert also_cut.startswith("warning: retain: ")
    assert " of 10 rows are longer than 12 tokens: " in also_cut
    assert done == f"run: {sharded}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shell.run("train", *arguments, f"output={plain}")
    one, other = weights(plain), weights(sharded)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=2e-6)


def test_plain_torch_is_for_one_process(
    lume: list[str], shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = shell.mistake("train", "zero=none", *lume, f"output={tmp_path / 'run'}")

    assert said == "zero=none is for one process, this run has 2; type zero=2 (or 1, 3)"
    assert not (tmp_path / "run").exists()


def test_adapters_are_merged_into_a_plain_model(lume: list[str], shell, tmp_path: Path) -> None:
    run = tmp_path / "lora"
    ended = shell.run(
        *("train", "tuning=lora", "tuning.rank=2", "max_steps=2", *lume, f"output={run}"),
        "optimizer.learning_rate=1e-2",
    )
    [target] = shell.cache.glob("lume-*/target")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    before = AutoModelForCausalLM.from_pretrained(target / "model")

    assert ended.code == 0, ended.err
    assert model.state_dict().keys() == before.state_dict().keys()
    moved = {n for n, w in model.state_dict().items() if not w.equal(before.state_dict()[n])}
    assert moved == {n for n in before.state_dict() if "_proj" in n}
    assert not (run / "model" / "adapter_config.json").exists()


def test_fresh_adapters_are_the_same_at_every_start_and_on_every_rank(
    lume: list[str], shell, weights, tmp_path: Path
) -> None:
    arguments = ["tuning=lora", "tuning.rank=2", "max_steps=2", "evaluate=false", *lume]
    runs = [tmp_path / name for name in ("once", "again", "sharded")]
    for run in runs[:2]:
        assert shell.run("train", *arguments, f"output={run}").code == 0
    ended = torchrun("launch.train", "zero=3", *arguments, f"output={runs[2]}")

    assert ended.returncode == 0, ended.stderr
    once, again, sharded = (weights(run) for run in runs)
    for name in once:
        assert torch.equal(again[name], once[name]), name
        torch.testing.assert_close(sharded[name], once[name], rtol=0, atol=2e-6)
