"""Imports go one way: each room may import those before it.

_C, triton_kernels <- engine (errors, table <- specs <- device <- formats <- ops <- graph <- plan <- runtime) <- disk
<- checkpoint <- model <- inputs, sampling <- execution <- scheduling <- api <- compat <- flashjanus <- serving,
measure (evaluation, profile, bench <- quality) <- cluster <- cli; builtin <- api. And no
file imports one that imports it.

Read from the syntax tree of every file, imports inside functions and under TYPE_CHECKING included.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flashjanus"
SOURCES = {  # folder: dotted name that it installs as
    "engine": f"{PACKAGE}.engine",
    "triton_kernels": f"{PACKAGE}.triton_kernels",
    "python/flashjanus": PACKAGE,
}
# A room may import itself and what is named here; `root` is python/flashjanus/__init__.py, the public names.
# Each floor may import those before it.
ENGINE = ["errors", "table", "specs", "device", "formats", "ops", "graph", "plan", "runtime"]
FLOORS = {f"engine.{floor}" for floor in ENGINE}
LOW = {"errors", "disk", *FLOORS}
PACKAGES = {*LOW, "checkpoint", "model", "builtin", "inputs", "sampling", "execution", "scheduling"}
MEASURE = ["evaluation", "profile", "bench", "quality"]
MAY_IMPORT = {
    "_C": set(),
    "triton_kernels": set(),
    "engine": set(),
    **{
        f"engine.{floor}": {"triton_kernels", *(f"engine.{low}" for low in ENGINE[:i])}
        for i, floor in enumerate(ENGINE)
    },
    "errors": {"engine.errors"},
    "disk": {"errors"},
    "checkpoint": {*LOW},
    "model": {*LOW, "checkpoint"},
    "builtin": {"errors"},
    "inputs": {*LOW, "checkpoint"},
    "sampling": {*LOW},
    "execution": {*LOW, "checkpoint", "model", "inputs", "sampling"},
    "scheduling": {*LOW, "checkpoint", "model", "inputs", "sampling", "execution"},
    "api": PACKAGES,
    "root": {"errors", "execution", "api", "compat"},
    "serving": {*PACKAGES, "api", "root"},
    "compat": {*PACKAGES, "api"},
    "measure": {"errors", "disk", "engine.ops"},  # what its parts share
    "measure.evaluation": {*PACKAGES, "api", "root", "measure"},
    "measure.profile": {*PACKAGES, "api", "root", "measure"},
    "measure.bench": {*PACKAGES, "api", "compat", "measure"},
    "measure.quality": {*PACKAGES, "api", *(f"measure.{part}" for part in ("evaluation", "bench")), "measure"},
    "cluster": {*PACKAGES, "api", "root", "serving"},
    "cli": {*PACKAGES, "api", "root", "measure", *(f"measure.{part}" for part in MEASURE), "serving", "cluster"},
    "__main__": {"cli"},
}
NATIVE = "flashjanus.engine.device.native"  # the one importer of flashjanus._C
BANNED = {"transformers", "diffusers", "timm", "torchvision"}
AUTO = "flashjanus.compat.auto"  # the one importer of transformers, to register with its Auto classes


def module_name(folder: str, path: Path) -> str:
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join([SOURCES[folder], *(part for part in parts if part != "__init__")])


FILES = [(path, module_name(folder, path)) for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {name for _, name in FILES} | {f"{PACKAGE}._C"}


def room(module: str) -> str:
    """The room of a module of ours: its first name below flashjanus, or two of the engine and of measure."""
    if module == PACKAGE:
        return "root"
    names = module.removeprefix(f"{PACKAGE}.").split(".")
    return ".".join(names[:2]) if ".".join(names[:2]) in MAY_IMPORT or names[0] == "engine" else names[0]


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported; `from a import b` is a.b where that is a module, else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                package = here[: len(here) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else base


def faults(source: str, module: str, is_package: bool = False) -> list[str]:
    """Every import of `source` that goes against the order."""
    found = []
    here = room(module)
    if here not in MAY_IMPORT:
        return [f"{module}: room '{here}' has no place in the order of {Path(__file__).name}"]
    for line, name in imported(ast.parse(source), module, is_package):
        top = name.partition(".")[0]
        where = f"{module}:{line} imports {name}"
        if top in BANNED and (module, top) != (AUTO, "transformers"):
            found.append(f"{where}: the engine runs the model itself")
        if top in ("engine", "triton_kernels"):
            found.append(f"{where}: it installs as {PACKAGE}.{top}")
        if top != PACKAGE:
            continue
        if name == f"{PACKAGE}._C":
            if module != NATIVE:
                found.append(f"{where}: only {NATIVE} may")
            continue
        there = room(name)
        if there != here and there not in MAY_IMPORT[here]:
            found.append(f"{where}: {here} may import {', '.join(sorted(MAY_IMPORT[here])) or 'no other room'}")
    return found


@pytest.mark.parametrize(("path", "module"), FILES, ids=[name for _, name in FILES])
def test_imports_go_one_way(path: Path, module: str) -> None:
    assert faults(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


def test_the_order_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        free = [name for name, needs in MAY_IMPORT.items() if name not in order and needs <= set(order)]
        assert free, f"these rooms import each other: {set(MAY_IMPORT) - set(order)}"
        order += free


def test_every_room_is_walked() -> None:
    assert {room(name) for _, name in FILES} | {"_C"} == set(MAY_IMPORT)
    assert len(FILES) > 60


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flashjanus.engine.graph", "import flashjanus.model"),
        ("flashjanus.engine.graph", "from flashjanus import model"),
        ("flashjanus.engine.graph", "from flashjanus.errors import InputError"),
        ("flashjanus.engine.ops.silu", "from ..graph import Graph"),
        ("flashjanus.engine.device.native", "from ..runtime import executor"),
        ("flashjanus.engine.ops.silu", "from ...model import Policy"),
        ("flashjanus.engine.ops.silu", "def late():\n    from ...checkpoint.config import JanusFlowConfig"),
        ("flashjanus.engine.runtime.executor", "from flashjanus import _C"),
        ("flashjanus.engine.runtime.executor", "import flashjanus._C as module"),
        ("flashjanus.execution.flow", "from .._C import build_info"),
        ("flashjanus.triton_kernels.silu", "from ..engine.ops import all_ops"),
        ("flashjanus.checkpoint.load", "from flashjanus.model import llama"),
        ("flashjanus.model.llama", "from flashjanus.execution.flow import sample"),
        ("flashjanus.builtin", "from flashjanus.inputs import images"),
        ("flashjanus.execution.text", "from flashjanus.cli.console import Console"),
        ("flashjanus.execution.text", "from flashjanus import JanusFlow"),
        ("flashjanus.execution.text", "from flashjanus.measure.evaluation import evaluate_shapes"),
        ("flashjanus.measure.evaluation.shapes", "from flashjanus.cli.console import Console"),
        ("flashjanus.errors", "from flashjanus.engine.graph import Dim"),
        ("flashjanus.model.llama", "import transformers.models.llama"),
        ("flashjanus.compat.model", "from transformers import AutoConfig"),
        ("flashjanus.compat.auto", "import diffusers"),
        ("flashjanus.model.llama", "from engine.ir import Dim"),
        ("flashjanus.attic.old", "import json"),
    ],
)
def test_an_import_against_the_order_is_caught(module: str, source: str) -> None:
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flashjanus.engine.device.native", "import flashjanus._C as module"),
        ("flashjanus.engine.ops.silu", "from ...triton_kernels import unavailable"),
        (
            "flashjanus.engine.ops.silu",
            "from ..errors import SchemaError\nfrom ..specs import Dim\nfrom .base import Op",
        ),
        ("flashjanus.errors", "from flashjanus.engine.errors import PlanError"),
        ("flashjanus.model.llama", "from flashjanus.checkpoint import Target\nfrom .policy import Policy"),
        ("flashjanus.cli.doctor", "from flashjanus import __version__\nfrom flashjanus.engine.ops import all_ops"),
    ],
)
def test_an_import_along_the_order_is_accepted(module: str, source: str) -> None:
    assert faults(source, module) == []


@pytest.mark.parametrize(
    "module",
    [
        "flashjanus",
        "flashjanus.cli.app",
        "flashjanus.compat",
        "flashjanus.errors",
        "flashjanus.sampling.options",
        "flashjanus.measure.bench.serving.serve_report",
    ],
)
def test_the_command_starts_without_torch(module: str) -> None:
    """`flashjanus --help` and usage errors answer at once; torch alone takes seconds."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert PACKAGE in loaded
    assert not {"torch", "triton", "numpy", "asyncio", "typing_extensions", *BANNED} & set(loaded)


def test_no_file_imports_one_that_imports_it() -> None:
    """By a path of any length."""
    imports = {
        module: {name for _, name in imported(ast.parse(path.read_text()), module, path.name == "__init__.py")}
        for path, module in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " <- ".join((*path[path.index(module) :], module))
        if module in done or module not in imports:
            return
        for name in sorted(imports[module]):
            visit(name, (*path, module))
        done.add(module)

    for module in imports:
        visit(module, ())
