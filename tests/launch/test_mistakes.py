"""What a user can get wrong: one line that says what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SETTINGS = {
    "trainer=npoo": "no trainer is called 'npoo'; did you mean 'npo'? (choices: ",
    "trainer.bta=0.5": "unknown setting 'trainer.bta'; did you mean 'beta'? (settings: ",
    "trainer.beta=abc": "trainer.beta must be a float, got 'abc'",
    "max_steps=2.5": "max_steps must be an int or null, got 2.5",
    "precision=fp8": "precision must be 'auto' or 'fp32' or 'bf16', got 'fp8'",
    "trainer.log_every=10": "unknown setting 'trainer.log_every'; it is log_every",
    "learning_rate=1e-4": "unknown setting 'learning_rate'; it is optimizer.learning_rate",
    "epoch=3": "unknown setting 'epoch'; did you mean 'epochs'? (settings: ",
    "zero=off": "no zero is called 'off' (choices: 0, 1, 2, 2_offload, 3, 3_offload, none)",
    "npo": "'npo' is not of the form key=value, such as trainer=npo",
    "--dryrun": "unknown option '--dryrun'; there are --help, --config FILE, --dry-run, ",
    "--config=nowhere.yaml": "no config file at nowhere.yaml",
    "max_steps=0": "max_steps must be at least 1 or null, got 0",
    "tuning.rank=8": "tuning=full has no setting 'rank', which is one of tuning=lora",
    "output=": "output is empty; name a folder, or leave it out",
    "output='  '": "output is empty; name a folder, or leave it out",
    "tuning.RANK=8": "tuning=full has no setting 'RANK'; did you mean 'rank', which is one of tuni",
    "epochs=0": "epochs must be a number > 0, got 0",
    "batch_size=0": "batch_size must be at least 1, got 0",
    "optimizer.learning_rate=-1": "optimizer.learning_rate must be > 0, got -1",
    "optimizer.warmup=1": "optimizer.warmup must be in [0, 1), got 1",
    "model.max_length=1": "model.max_length must be at least 2, got 1",
    "model.heads=3": "model.hidden_size=16 must be an even multiple of model.heads=3",
    "benchmark.limit=0": "benchmark.limit must be at least 1 row or null, got 0",
    "finetune_on=target": "finetune_on=target is for trainer=finetune; trainer=npo forgets",
    "gold=nowhere": "there is no evaluation at nowhere; make one: python -m launch.eval run=now",
    "keep_checkpoints=0": "keep_checkpoints must be at least 1, got 0",
    "--config": "argument --config: expected one argument; --help says what there is",
    "forget_part=3/2": "forget_part must be k/n, the k-th of n parts, such as 1/4, or null, got",
    "forget_part=1/900": "forget_part=1/900: there are only ",
    "after=nowhere": "after=nowhere holds no finished run (no model/ in it)",
    "log_every=-1": "log_every must be at least 0, got -1",
    "trainer.class=framework.engine.LocalEngine": "trainer.class: 'framework.engine.Loc",
    "weighting.class=trainers.npo.NPO": "weighting.class: 'trainers.npo.NPO' is no Weighting; c",
    "zero.class=os.system": "zero.class: 'os.system' has no nested dataclass `Config`",
}
COMBINATIONS = {
    ("trainer=grad_ascent", "weighting=blur"): "the weighting BLUR balances two objectives, but ",
    (
        "trainer=finetune",
        "perturbation=sam",
    ): "the perturbation SAM perturbs the forget ",
    (
        "trainer=finetune",
        "trainer.retain_loss=none",
    ): "trainer.retain_loss=none leaves this ",
    (
        "trainer=npo",
        "finetune_on=forget",
        "--dry-run",
    ): "finetune_on=forget is for trainer=",
    ("trainer=npo_muse", "selection=su_ngram"): "selection=su_ngram chooses tokens, but trainer=np",
    ("zero=3", "benchmark.gradient_norm=true"): "benchmark.gradient_norm=true needs whole weights,",
    ("trainer=finetune", "forget_part=1/2"): "forget_part=1/2 is for runs that read the forget row",
    ("trainer=undial", "trainer.prompt_parity=true", "selection=su"): "selection=su chooses tokens",
    ("trainer=finetune", "selection=su"): "selection=su selects among the tokens to forget, but ",
    ("trainer=grad_ascent", "retain_by=task"): "retain_by=task is for a method that forgets and ",
    ("weighting=blur", "retain_by=task"): "the weighting BLUR balances one retain objective, this ",
    ("weighting=primal_dual", "weighting.level={a: 1, b: 2}"): "weighting.level has a number for a",
    ("weighting=blur", "weighting.gamma=0"): "weighting.gamma must be > 0, got 0: at 0 nothing is",
    ("weighting=gru", "weighting.rate=0"): "weighting.rate must be in (0, 1], got 0",
    ("averaging=uniform", "averaging.start=1"): "averaging.start must be in [0, 1), got 1",
    ("trainer=grad_ascent", "optimizer.automatic_every=5"): "optimizer.automatic_every fits the ",
    ("trainer.forget_weight=-1",): "trainer.forget_weight must be >= 0, got -1",
    ("trainer=dpo", "trainer.preferred.count=5"): "trainer.preferred.count=5 is how many answers ",
    ("trainer.retain_loss=kl", "trainer.kl_parity=raw_logits", "trainer.reference=cached"): (
        "the cached reference holds what answer tokens need, and these settings read every position"
    ),
    ("trainer.kl_parity=raw_logits",): "trainer.kl_parity=raw_logits is a way to have the retain ",
    ("trainer=rmu", "trainer.layer=2"): "trainer.layer must be from 1 to 1, the model's decoder ",
    ("trainer.retain_loss=states", "trainer.layer=0", "--dry-run"): "trainer.layer must be from 1",
    ("zero=0", "precision=bf16"): "zero=0 with precision=bf16 would accumulate gradients in bf16;",
    ("trainer=dpo", "trainer.beta=0"): "trainer.beta must be > 0, got 0",
    ("trainer=dpo", "trainer.preferred.source=field", "trainer.preferred.field=refusal"): (
        "forget row 'author0005qa0' has no field 'refusal' (its fields: paraphrased_answer, "
    ),
    ("trainer=altpo", "trainer.preferred.temperature=0"): (
        "trainer.preferred.temperature must be > 0, got 0"
    ),
    (
        "weighting=none",
        "weighting.gamma=1",
    ): "weighting=none has no setting 'gamma', which is one of weighting=blur or ",
    ("weighting=primal_dual", "weighting.dual=2000"): (
        "weighting.cap must be >= weighting.dual=2000, got 1000"
    ),
    ("weighting=primal_dual", "retain_by=task", "weighting.level={author:0.2}"): (
        "weighting.level: write `author: 0.2`, with a space after the colon"
    ),
    ("benchmark=lume", "benchmark.path=nowhere", "--dry-run"): "LUME needs the folder of its rel",
    ("benchmark=lume",): "LUME needs the folder of its released files, but none is set: clone ",
    ("benchmark=lume", "benchmark.path=nowhere"): "LUME needs the folder of its released files, ",
    ("model=pretrained",): "model.path is empty; type model.path=<folder or hub name>",
    ("model=pretrained", "model.path=nowhere"): "no model could be loaded from 'nowhere'",
    ("tuning=layers", "tuning.parameters=xyz"): "tuning.parameters='xyz' matches no parameter;",
    ("tuning=layers", "tuning.parameters=("): "tuning.parameters is no regular expression: '('",
    ("optimizer=muon", "tuning=layers", "tuning.parameters=norm"): "optimizer=muon is for hidden m",
    ("optimizer=muon", "optimizer.max_gradient_norm=1"): "optimizer=muon takes the direction's or",
    ("tuning=lora", "tuning.rank=0"): "tuning.rank must be >= 1, got 0",
    ("tuning=lora", "tuning.targets=[xyz]"): "tuning.targets=['xyz'] names no linear layer of",
}


@pytest.mark.parametrize("given", SETTINGS)
def test_a_setting_that_cannot_be_is_one_line(given: str, shell, tmp_path: Path) -> None:
    output = tmp_path / "run"
    said = shell.mistake("train", *shell.small(f"output={output}", "max_steps=1"), given)

    assert said.startswith(SETTINGS[given])
    assert not (output / "config.yaml").exists()


def test_settings_may_follow_an_option(shell, tmp_path: Path) -> None:
    ended = shell.run("train", "trainer=npo", "--dry-run", *shell.small(f"output={tmp_path}/run"))

    assert ended.code == 0, ended.err
    assert f"output: {tmp_path}/run" in ended.out + ended.err


@pytest.mark.parametrize("given", COMBINATIONS, ids=" ".join)
def test_settings_that_do_not_go_together_are_one_line(
    given: tuple[str, ...], shell, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    own = {text.partition("=")[0] for text in given if "." not in text}
    chosen = [
        text
        for text in shell.small(f"output={output}", "max_steps=1")
        if text.partition("=")[0].partition(".")[0] not in own & {"model", "benchmark"}
    ]
    said = shell.mistake("train", *chosen, *given)

    assert said.startswith(COMBINATIONS[given])
    assert not (output / "config.yaml").exists()


@pytest.fixture
def model(shell, tmp_path: Path) -> Path:
    """A copy of the small target model."""
    shell.train(f"output={tmp_path / 'made'}", "max_steps=1", "evaluate=false", "save_every=0")
    return (tmp_path / "made" / "model").rename(tmp_path / "model")


@pytest.fixture
def lume(tmp_path: Path) -> Path:
    """Four rows to forget and four to keep, in LUME's form."""
    folder = tmp_path / "lume"
    folder.mkdir()
    for split in ("forget", "retain"):
        write(folder, split, [row(f"{split}{i}qa0", f"Who is {split} {i}?") for i in range(4)])
    return folder


def row(row_id: str, question: str, answer: str = "Nobody you know.") -> dict[str, str]:
    return {"id": row_id, "input": question, "output": answer, "task": "Task1", "split": ""}


def write(folder: Path, split: str, rows: list[dict[str, str]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def given(model: Path, lume: Path, output: Path) -> list[str]:
    return [
        *("model=pretrained", f"model.path={model}", "benchmark=lume", f"benchmark.path={lume}"),
        *("benchmark.max_new_tokens=4", f"output={output}", "tracker=none", "max_steps=1"),
    ]


def test_an_empty_forget_set_is_one_line(shell, model: Path, lume: Path, tmp_path: Path) -> None:
    write(lume, "forget", [])
    said = shell.mistake("train", *given(model, lume, tmp_path / "run"))

    assert said == f"{lume / 'forget.jsonl'} holds no rows"


def test_a_line_that_is_no_json_is_named(shell, model: Path, lume: Path, tmp_path: Path) -> None:
    with (lume / "retain.jsonl").open("a") as file:
        file.write("{broken\n")
    said = shell.mistake("train", *given(model, lume, tmp_path / "run"))

    assert said.startswith(f"{lume / 'retain.jsonl'}:5: not valid JSON (")


@pytest.mark.filterwarnings("ignore:there are no rows of")
@pytest.mark.filterwarnings("default")
def test_rows_to_forget_and_to_keep_are_named_in_a_warning(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    both = row("forget1qa0", "Who is forget 1?")
    write(lume, "retain", [row(f"r{i}qa0", f"Who is {i}?") for i in range(4)] + [both])
    ended = shell.run("train", *given(model, lume, tmp_path / "run"))

    assert ended.code == 0
    assert ended.err.splitlines()[0] == (
        "warning: 1 rows are both to be forgotten and to be kept: 'forget1qa0'; remove them from "
        "one of the two"
    )


@pytest.mark.filterwarnings("default")
def test_rows_longer_than_the_context_are_named_with_what_they_lost(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    write(lume, "forget", [row("longsc1", "word " * 200), row("shortqa0", "Who?")])
    ended = shell.run("train", *given(model, lume, tmp_path / "run"), "model.max_length=64")

    assert ended.code == 0
    said = ended.err.splitlines()[0]
    assert said.startswith("warning: forget: 1 of 2 rows are longer than 64 tokens: 1 lost ")
    assert said.endswith(" prompt tokens ('longsc1')")


@pytest.mark.filterwarnings("ignore:there are no rows of")
def test_an_answer_longer_than_the_context_is_refused(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    said = shell.mistake(
        "eval",
        *("benchmark=lume", f"benchmark.path={lume}", f"model.path={model}"),
        *("benchmark.max_new_tokens=100000",),
    )

    assert said.startswith("an answer of 100000 tokens leaves no room for its prompt: ")


def test_a_tokenizer_that_cannot_end_a_text_is_refused(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("eos_token")
    file.write_text(json.dumps(settings))
    said = shell.mistake("train", *given(model, lume, tmp_path / "run"))

    assert said.startswith(f"the tokenizer at {model} has no EOS token")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_weights_that_are_damaged_are_one_line(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").write_bytes(b"damaged")
    said = shell.mistake("train", *given(model, lume, tmp_path / "run"))

    assert said.startswith(f"no model could be loaded from {str(model)!r} (folder): ")


@pytest.mark.filterwarnings("ignore:there are no rows of")
def test_a_start_that_failed_can_be_repeated_with_the_same_output(
    shell, model: Path, lume: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    moved = model.rename(tmp_path / "elsewhere")
    shell.mistake("train", *given(model, lume, output))
    ended = shell.run("train", *given(moved, lume, output))

    assert ended.code == 0, ended.err


def test_an_output_that_cannot_be_made_is_one_line(shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    said = shell.mistake("train", *shell.small(f"output={output}"))

    assert said == f"output={output} cannot be made: Not a directory"


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        ("sweep", [], "the following arguments are required: file; --help says what there is"),
        ("sweep", ["a.yaml", "--jobs", "two"], "argument --jobs: invalid int value: 'two'; --hel"),
        ("sweep", ["a.yaml", "--local", "--report"], "argument --report: not allowed with argume"),
        ("sweep", ["nowhere.yaml"], "no config file at nowhere.yaml"),
        ("tofu_log", ["a.json", "--gold"], "unrecognized arguments: --gold; --help says what"),
        ("report", [], "the following arguments are required: runs; --help says what there is"),
        ("bench", ["training", "--config", "x"], "unknown option '--config'; there are --help"),
        ("attack", ["--config=x"], "unknown option '--config=x'; there are --help, and"),
        ("eval", ["output="], "output is empty; name a folder, or leave it out"),
        ("bench", ["count", "output="], "output is empty; name a folder, or leave it out"),
        ("bench", ["training", "methods=[NPO]"], "methods: there is no 'NPO'; did you mean 'npo'?"),
        ("eval", ["--dry-run"], "unknown option '--dry-run'; there are --help, --config FILE, and"),
    ],
)
def test_a_command_that_cannot_be_read_is_one_line(
    entry: str, arguments: list[str], message: str, shell
) -> None:
    assert shell.mistake(entry, *arguments).startswith(message)


def test_an_evaluation_that_is_given_a_runs_config_asks_for_the_run(shell, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: npo\n")

    assert shell.mistake("eval", f"--config={tmp_path}/config.yaml") == (
        f"{tmp_path}/config.yaml is a run's config; type run={tmp_path}"
    )
    assert "an evaluation's resolved config" in shell.run("eval", "--help").out


def test_evaluating_what_is_no_run_is_one_line(shell, tmp_path: Path) -> None:
    assert shell.mistake("eval", f"run={tmp_path}") == (
        f"{tmp_path} holds no finished run (no model/ in it)"
    )
    own = [text for text in shell.small() if text.startswith("benchmark")]
    said = shell.mistake("eval", *own, f"model={tmp_path}/none", f"output={tmp_path}/measured")
    assert said.startswith(f"there is no folder '{tmp_path}/none'; ")
    assert not (tmp_path / "measured").exists()
    assert shell.mistake("eval").startswith("model.path is empty; type model.path=")
    assert shell.mistake("eval", "model=tiny").startswith(
        "launch.eval measures a model that exists"
    )
