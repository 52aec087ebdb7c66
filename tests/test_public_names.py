"""What `import framework` offers: sorted names, all of them there, and light to import."""

import subprocess
import sys

import framework


def test_the_public_names_are_sorted_and_unique():
    names = framework.__all__
    assert names == sorted(set(names))


def test_every_public_name_is_there():
    assert [name for name in framework.__all__ if name not in vars(framework)] == []


def test_a_public_name_is_imported_for_nothing_else():
    modules = {type(sys)}
    public = {
        name
        for name, value in vars(framework).items()
        if not name.startswith("_") and type(value) not in modules
    }
    assert public == set(framework.__all__)


def test_importing_the_framework_loads_neither_deepspeed_nor_wandb():
    code = "import sys, framework; print(sorted({'deepspeed', 'wandb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
