"""What commands import: a mistake is told, and a run begun, without libraries they have no use of.

A library that is imported where any run begins costs every run its seconds.
"""

import subprocess
import sys
from pathlib import Path

from framework.loading import Tiny

ROOT = Path(__file__).parents[2]
NOT_TO_TELL = {
    *("torch._dynamo", "transformers.modeling_utils", "transformers.trainer"),
    *("accelerate", "bitsandbytes", "datasets", "deepspeed", "lm_eval", "matplotlib", "nltk"),
    *("pandas", "peft", "scipy", "sklearn", "tensorboard", "wandb"),
}
"""What is not needed to tell a mistake, or what there is to choose."""
NOT_TO_TRAIN = NOT_TO_TELL - {
    # parts of every transformers model
    *("torch._dynamo", "transformers.modeling_utils", "accelerate", "scipy"),
} | {"scipy.stats"}
"""What one process needs for no step, whatever the method."""
SHOWING = """
import sys
from launch.train import main
from trainers.npo import NPO

ended, seen = "well", []

class Looking(NPO):
    def forget_loss(self, rows):
        seen.append([*sys.modules])
        return super().forget_loss(rows)

try:
    main(sys.argv[1:])
except (Exception, SystemExit) as error:
    ended = type(error).__name__
print()
print(ended, *(seen[-1] if seen else sys.modules))
"""


def imported(*arguments: str) -> tuple[str, set[str]]:
    """How `launch.train` ended, and all that it had imported: then, or at its last step."""
    command = [sys.executable, "-c", SHOWING, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ended, *modules = done.stdout.splitlines()[-1].split()
    return ended, set(modules)


def test_help_and_a_mistake_import_no_library_that_only_runs_need():
    ended, modules = imported("trainer=nop")
    assert ended == "ConfigError"
    assert modules & NOT_TO_TELL == set()
    ended, modules = imported("--help")
    assert ended == "SystemExit"
    assert modules & NOT_TO_TELL == set()


def test_a_plain_run_imports_no_library_that_no_step_of_it_needs(tmp_path: Path):
    model = Tiny(Tiny.Config()).build(["a question and its answer"], seed=0)
    model.save(tmp_path / "model", model.module.state_dict())
    ended, modules = imported(
        *("trainer=npo", "trainer.class=__main__.Looking", f"model={tmp_path / 'model'}"),
        *("benchmark=mini_small", "max_steps=2", "tracker=none", "evaluate=false"),
        f"output={tmp_path / 'run'}",
    )
    assert ended == "well"
    assert modules & NOT_TO_TRAIN == set()
