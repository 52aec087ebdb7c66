"""Whether DeepSpeed can build its operators here, and whether a lock of a dead build is in the way.

torch builds in $TORCH_EXTENSIONS_DIR/<operator>/ and holds a file `lock` open there meanwhile; who
comes second waits for it to go, without a time limit. One that a killed job left blocks for ever.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from .finding import Finding

STALE = 10 * 60.0
"""Seconds after which nobody builds any more: the operators take about one minute."""
NONE_BUILT = "none built yet"
LOCKED = "build lock"
PROGRAM = "#include <Python.h>\nint main() { return 0; }\n"


def compiler() -> Finding:
    """Whether a C++ program that includes Python's headers compiles."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    path = shutil.which(command[0])
    if path is None:
        remedy = "apt-get install g++, or module load gcc, or set CXX"
        return Finding("C++ compiler", "fail", f"no {command[0]} in PATH", remedy)
    options = ["-x", "c++", "-fsyntax-only", "-I", sysconfig.get_paths()["include"], "-"]
    done = subprocess.run(  # noqa: S603 (the user's own compiler)
        [path, *command[1:], *options],
        input=PROGRAM,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "it failed")
        remedy = "install Python's headers (apt-get install python3-dev) or another compiler"
        return Finding("C++ compiler", "fail", f"{path}: {said}", remedy)
    return Finding("C++ compiler", "pass", path)


def ninja() -> Finding:
    """Whether the build tool is in PATH, where torch looks for it."""
    path = shutil.which("ninja")
    if path is not None:
        return Finding("ninja", "pass", path)
    beside = Path(sys.executable).parent
    if (beside / "ninja").exists():
        return Finding("ninja", "fail", f"not in PATH, though in {beside}", f"PATH={beside}:$PATH")
    return Finding("ninja", "fail", "not in PATH", "pip install -c constraints.txt ninja")


def extensions() -> list[Finding]:
    """The folder of built operators: writable, and without locks; one finding for each lock."""
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "export TORCH_EXTENSIONS_DIR=<a folder of yours>"
        return [Finding("DeepSpeed operators", "fail", str(error), remedy)]
    if not os.access(folder, os.W_OK):
        remedy = "export TORCH_EXTENSIONS_DIR=<a folder of yours>"
        return [Finding("DeepSpeed operators", "fail", f"{folder} is not writable", remedy)]
    # without the variable there is a folder for each Python and CUDA in between
    locks = sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])
    if locks:
        return [_lock(lock) for lock in locks]
    names = {path.stem for path in [*folder.glob("*/*.so"), *folder.glob("*/*/*.so")]}
    built = f"built: {', '.join(sorted(names))}" if names else NONE_BUILT
    return [Finding("DeepSpeed operators", "pass", f"{folder}: {built}; no lock")]


def awaited(*, on_gpu: bool) -> list[str]:
    """What whoever sets DeepSpeed up now waits for, in lines: nothing, as a rule.

    `on_gpu`: gloo's sums need no operator there.
    """
    found = extensions()
    locks = [x for x in found if x.state != "pass" and x.name == LOCKED]
    if locks or on_gpu or any(NONE_BUILT not in x.found for x in found):
        return [f"{x.name}: {x.found}; {x.remedy}" for x in locks]
    return [f"DeepSpeed builds an operator in {_folder()}, once: about a minute"]


def _folder() -> Path:
    if os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(os.environ["TORCH_EXTENSIONS_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torch_extensions"


def _lock(lock: Path) -> Finding:
    try:
        age = time.time() - lock.stat().st_mtime
    except OSError:
        return Finding(LOCKED, "pass", f"{lock} went away just now")
    found = f"{lock}, {age / 60:.0f} minutes old"
    holder = _holder(lock)
    if holder is not None:
        return Finding(LOCKED, "pass", f"{found}, held by process {holder}, which builds")
    if age < STALE:
        remedy = f"if nobody builds on another node: rm {shlex.quote(str(lock))}"
        return Finding(LOCKED, "warn", f"{found}, held by no process here", remedy)
    remedy = f"rm {shlex.quote(str(lock))}"
    return Finding(
        LOCKED, "fail", f"{found}, held by no process: whoever builds next hangs", remedy
    )


def _holder(lock: Path) -> int | None:
    """The process of this machine that has the lock open, as far as we may look."""
    real = lock.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = list((process / "fd").iterdir())
        except OSError:  # another user's, or it ended
            continue
        for file in files:
            try:
                if file.readlink() == real:
                    return int(process.name)
            except OSError:  # closed meanwhile
                continue
    return None
