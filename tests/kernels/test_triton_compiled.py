"""Every Triton kernel in every form that it is launched in, compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import importlib
import io
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
from flashjanus import triton_kernels
from flashjanus.triton_kernels import Variant
from kernel_resources import SHARED_PER_BLOCK, parse

triton = pytest.importorskip("triton")
from flashjanus.triton_kernels import attention, flow_update, scaled_matmul  # noqa: E402
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


@dataclass(frozen=True)
class Compiled:
    kernel: Any
    report: str
    """What ptxas said when Triton called it."""


Compiler = Callable[[Variant, int], Compiled]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    """compiled(variant, chip): the kernel as a launch on torch's tensors would compile it; once for all tests."""
    done: dict[tuple[str, str, int], Compiled] = {}

    def once(variant: Variant, chip: int) -> Compiled:
        key = (variant.kernel.__name__, variant.name, chip)
        if key not in done:
            said = io.StringIO()
            with redirect_stdout(said):
                kernel = compile_for(variant, chip)
            done[key] = Compiled(kernel, said.getvalue())
        return done[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
        yield once


def compile_for(variant: Variant, chip: int) -> Any:
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


@pytest.mark.parametrize(("variant", "chip"), VARIANTS)
def test_compiles_without_spills(
    variant: Variant,
    chip: int,
    compiled: Compiler,
    record_kernel: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    it = compiled(variant, chip)
    (((_, arch), resources),) = parse(it.report).items()
    assert arch.startswith(f"sm_{chip}")
    assert resources.spills == 0
    shared = it.kernel.metadata.shared
    assert shared <= SHARED_PER_BLOCK[chip]
    name = request.node.callspec.id.rpartition("-")[0]
    record_kernel(f"triton {name}", chip, replace(resources, shared=shared), it.kernel.metadata.num_warps)


@pytest.mark.parametrize(("chip", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma")])
def test_bf16_attention_runs_on_tensor_cores(chip: int, instruction: str, compiled: Compiler) -> None:
    """Both products, in both loops, of every production form; operands arrive by asynchronous copies."""
    forms = [variant for variant in attention.variants(chip) if variant.name.startswith("bf16")]
    assert {variant.constants["HEAD"] for variant in forms} == {64, 128}
    for variant in forms:
        ptx = compiled(variant, chip).kernel.asm["ptx"]
        assert len(re.findall(re.escape(instruction), ptx)) >= 4
        assert "cp.async" in ptx


@pytest.mark.parametrize(
    ("chip", "name", "instruction"),
    [
        (80, "-i8-", r"mma\.sync\S*\.s32\.s8\.s8\.s32"),
        (90, "-i8-", r"wgmma\.mma_async\S*\.s32\.s8\.s8"),
        (90, "-fp8e4nv-", r"wgmma\.mma_async\S*\.f32\.e4m3\.e4m3"),
        (100, "-i8-", r"tcgen05\.mma\S*kind::i8"),
        (100, "-fp8e4nv-", r"tcgen05\.mma\S*kind::f8f6f4"),
    ],
)
def test_products_in_8_bits_run_on_tensor_cores(chip: int, name: str, instruction: str, compiled: Compiler) -> None:
    """Of 8 bits, not of what they are widened to; a tile of 16 rows is too small for other instructions than mma."""
    forms = [variant for variant in scaled_matmul.variants(chip) if name in variant.name]
    assert {variant.constants["ROWS"] for variant in forms} == {16, 64, 128}
    for variant in forms:
        ptx = compiled(variant, chip).kernel.asm["ptx"]
        assert re.search(r"mma\.sync" if variant.constants["ROWS"] == 16 else instruction, ptx), variant.name
        assert "cp.async" in ptx


def test_float32_attention_multiplies_in_float32(compiled: Compiler) -> None:
    (variant, *_) = [v for v in attention.variants(90) if v.name == "fp32-64"]
    assert not re.search(r"tf32|mma", compiled(variant, 90).kernel.asm["ptx"])


def test_the_advance_of_a_row_follows_a_barrier(compiled: Compiler) -> None:
    """Warps drift: one that read its step after another had advanced it would stop too early."""
    for variant in flow_update.variants(90):
        assert re.search(r"bar(rier)?\.sync.*st\.global", compiled(variant, 90).kernel.asm["ptx"], re.DOTALL)


def test_importing_the_package_imports_no_triton() -> None:
    check = (
        "import sys, flashjanus.triton_kernels as t; assert t.unavailable() is None; assert 'triton' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert "pip install flashjanus[triton]" in str(triton_kernels.unavailable())
