"""The arrows between files: who may import whom, read from the syntax trees of all of them.

`framework` knows no paper, `trainers` knows no DeepSpeed, `launch` wires; each large library has
one door. Imports inside functions count like those at the top.
"""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT)
    for package in ("framework", "trainers", "launch")
    for path in (ROOT / package).rglob("*.py")
)

# Where each library may be imported. A folder stands for all files in it.
ONLY = {
    "deepspeed": ["framework/zero.py", "launch/plain_deepspeed.py"],
    "bitsandbytes": ["framework/evaluation/attacks/weights.py", "framework/optimizers.py"],
    "wandb": ["framework/wandb_view.py", "launch/dashboard.py"],
    "wandb_workspaces": ["launch/dashboard.py"],
    "datasets": ["framework/sources.py"],
    "omegaconf": ["framework/config.py", "launch"],
    "yaml": ["framework/config.py"],
    "peft": ["framework/tuning.py"],
    "rich": ["framework/terminal.py"],
    "lm_eval": ["framework/evaluation/harness.py", "framework/evaluation/harness_model.py"],
    "matplotlib": ["framework/evaluation/report", "framework/evaluation/sequence.py"],
    "transformers": [
        "framework/attention.py",
        "framework/decoding.py",
        "framework/language_model.py",
        "framework/loading.py",
        "framework/modules.py",
        "framework/next_token.py",
        "framework/reading.py",
        "framework/recomputation.py",
        "framework/tuning.py",
        "framework/zero.py",
        "launch/counted_attention.py",
        "launch/fit.py",
        "launch/rehearsal.py",
        "launch/shapes.py",
    ],
}
BANNED = {"util", "utils", "helper", "helpers", "common", "misc", "base"}
BANNED |= {"handler", "manager", "processor", "registry"}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), filename=str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, level) of all that a file imports; `from a import b` gives a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) - node.level + 1]
            start = [*above] if node.level else []
            start += [node.module] if node.module else []
            for alias in node.names:
                yield ".".join([*start, alias.name]), node.level


def top(name: str) -> str:
    return name.partition(".")[0]


def within(path: Path, places: list[str]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def arrows() -> dict[str, set[str]]:
    """Each module of ours with those of ours that it imports."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph[module] = set()
        for name, _ in imports(path):
            owner = name if name in MODULES else name.rpartition(".")[0]
            if owner in MODULES and owner != module:
                graph[module].add(owner)
    return graph


def reachable(start: str) -> set[str]:
    graph, found, open_ends = arrows(), set(), [start]
    while open_ends:
        module = open_ends.pop()
        if module not in found:
            found.add(module)
            open_ends += graph[module]
    return found


def test_the_framework_imports_neither_trainers_nor_launch():
    found = [
        f"{path} imports {name}"
        for path in FILES
        for name, _ in imports(path)
        if path.parts[0] == "framework" and top(name) in {"trainers", "launch"}
    ]
    assert found == []


def test_trainers_import_only_the_framework_torch_and_the_standard_library():
    allowed = {"framework", "torch", "trainers", *sys.stdlib_module_names}
    found = [
        f"{path} imports {name}"
        for path in FILES
        for name, _ in imports(path)
        if path.parts[0] == "trainers" and top(name) not in allowed
    ]
    assert found == []


@pytest.mark.parametrize("library", ONLY)
def test_a_large_library_is_imported_only_where_it_belongs(library):
    found = [
        str(path)
        for path in FILES
        if any(top(name) == library for name, _ in imports(path))
        and not within(path, ONLY[library])
    ]
    assert found == []


def test_imports_inside_the_framework_are_relative():
    found = [
        f"{path} imports {name}"
        for path in FILES
        for name, level in imports(path)
        if path.parts[0] == "framework" and level == 0 and top(name) == "framework"
    ]
    assert found == []


def test_no_import_goes_in_a_circle():
    list(graphlib.TopologicalSorter(arrows()).static_order())  # raises CycleError, with the circle


def test_training_does_not_know_evaluation():
    if "framework.trainer" in MODULES:
        known = reachable("framework.trainer")
        assert not [name for name in known if name.startswith("framework.evaluation")]


def test_launch_is_imported_by_nobody():
    graph = arrows()
    found = [
        f"{module} imports {name}"
        for module in graph
        for name in graph[module]
        if top(name) == "launch" and top(module) != "launch"
    ]
    assert found == []


def words(name: str) -> set[str]:
    """`LocalEngine` and `local_engine` are both {local, engine}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_name_hides_what_a_thing_does():
    found = []
    for path in FILES:
        found += [str(part) for part in path.parts if words(Path(part).stem) & BANNED]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{path}: {node.name}"] if words(node.name) & BANNED else []
    assert found == []


def test_every_file_begins_by_saying_what_it_is():
    assert [str(path) for path in FILES if not ast.get_docstring(tree_of(path))] == []
