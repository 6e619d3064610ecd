"""Every Triton kernel in every form that it is launched in, compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flashjanus import triton_kernels
from flashjanus.triton_kernels import Variant
from kernel_resources import SHARED_PER_BLOCK, parse

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CHIPS = (80, 90, 100)
MODULES: list[ModuleType] = [
    importlib.import_module(f"flashjanus.triton_kernels.{module.name}")
    for module in pkgutil.iter_modules(triton_kernels.__path__)
]
VARIANTS = [
    pytest.param(variant, chip, id=f"{module.__name__.rpartition('.')[2]}-{variant.name}-sm_{chip}")
    for module in MODULES
    for chip in CHIPS
    for variant in module.variants(chip)
]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(variant: Variant, chip: int) -> Any:
    """The kernel as a launch on torch's tensors would compile it."""
    names = variant.kernel.arg_names
    unknown = (set(variant.pointers) | set(variant.constants) | variant.floats | variant.divisible) - set(names)
    assert not unknown, f"no parameters of {variant.kernel.__name__}: {unknown}"
    types = dict.fromkeys(variant.constants, "constexpr") | dict(variant.pointers)
    types |= dict.fromkeys(variant.floats, "fp32")
    signature = {name: types.get(name, "i32") for name in names}
    aligned = [name for name in (*variant.pointers, *variant.divisible) if name not in variant.constants]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(variant.kernel, signature, dict(variant.constants), attributes)
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=dict(variant.options))


def ptxas() -> str:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    return str(next(path for name in ("ptxas-blackwell", "ptxas") if (path := tools / name).exists()))


@pytest.mark.parametrize(("variant", "chip"), VARIANTS)
def test_compiles_without_spills(
    variant: Variant, chip: int, tmp_path: Path, record_kernel: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    kernel = compiled(variant, chip)
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(kernel.asm["ptx"])
    arch = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])
    assert arch is not None
    assert arch[1].startswith(f"sm_{chip}")
    report = subprocess.run(
        [ptxas(), "-v", f"-arch={arch[1]}", str(ptx), "-o", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stderr
    (resources,) = parse(report.stdout + report.stderr).values()
    assert resources.spills == 0
    assert kernel.metadata.shared <= SHARED_PER_BLOCK[chip]
    name = request.node.callspec.id.rpartition("-")[0]
    taken = replace(resources, shared=kernel.metadata.shared)
    record_kernel(f"triton {name}", chip, taken, kernel.metadata.num_warps)


def test_the_advance_of_a_row_follows_a_barrier() -> None:
    """Warps drift: one that read its step after another had advanced it would stop too early."""
    from flashjanus.triton_kernels import cfg_euler

    for variant in cfg_euler.variants(90):
        assert re.search(r"bar(rier)?\.sync.*st\.global", compiled(variant, 90).asm["ptx"], re.DOTALL)


def test_importing_the_package_imports_no_triton() -> None:
    check = (
        "import sys, flashjanus.triton_kernels as t; assert t.unavailable() is None; assert 'triton' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert "pip install flashjanus[triton]" in str(triton_kernels.unavailable())
