"""triton_kernels/cfg_euler.py: run in Triton's interpreter, and compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")

# bfloat16 is left to the compiled kernel: the interpreter's conversions to it truncate.
DTYPES = [torch.float32, torch.float16]


@pytest.fixture(scope="module")
def interpreted(kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, tuple]:
    """(shape, dtype) -> the case and its buffers afterwards, all run in one process."""
    folder = tmp_path_factory.mktemp("interpreter")
    cases = {(shape, dtype): kit.make_case(*shape, dtype=dtype) for shape in kit.shapes for dtype in DTYPES}
    buffers = {key: [kit.Guarded(tensor) for tensor in case.arguments()] for key, case in cases.items()}
    sent = [([b.whole for b in row], [b.tensor.shape for b in row], kit.guard) for row in buffers.values()]
    torch.save(sent, folder / "cases.pt")
    program = Path(__file__).with_name("run_triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "cases.pt"), str(folder / "results.pt")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for row, wholes in zip(buffers.values(), torch.load(folder / "results.pt"), strict=True):
        for buffer, whole in zip(row, wholes, strict=True):
            buffer.whole.copy_(whole)
    return {key: (cases[key], buffers[key]) for key in cases}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpreted_equals_the_reference(
    interpreted: dict[tuple, tuple], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    case, buffers = interpreted[shape, dtype]
    assert all(buffer.intact() for buffer in buffers)
    _, z, _, step, _ = (buffer.tensor for buffer in buffers)
    case.verify(z, step)


def compiled(capability: int, v: str, channels: int, patch: int) -> SimpleNamespace:
    from flashjanus.triton_kernels import cfg_euler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = cfg_euler.cfg_euler_kernel.arg_names
    pointers = {"v_ptr": v, "z_ptr": "*fp32", "guidance_ptr": "*fp32", "step_ptr": "*i32", "steps_ptr": "*i32"}
    constants = {"CHANNELS": channels, "PATCH": patch, "BLOCK": cfg_euler.BLOCK}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    # what Triton specialises on by itself when it launches on torch's own tensors
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(cfg_euler.cfg_euler_kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=cfg_euler.OPTIONS)


@pytest.mark.parametrize("v", ["*fp32", "*bf16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_ahead_of_time_without_spills(
    capability: int, v: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = compiled(capability, v, channels=4, patch=2)
    assert kernel.metadata.shared <= 48 * 1024
    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(kernel.asm["ptx"])
    assert f".target sm_{capability}" in kernel.asm["ptx"]
    # every read of the step, then a barrier, then its advance
    assert re.search(r"bar(rier)?\.sync.*st\.global", kernel.asm["ptx"], re.DOTALL)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    ptxas = next(path for name in ("ptxas-blackwell", "ptxas") if (path := tools / name).exists())
    arch = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])[1]
    report = subprocess.run(
        [str(ptxas), "-v", f"-arch={arch}", str(ptx), "-o", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stderr
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", report.stdout + report.stderr), report.stderr


def test_importing_the_package_imports_no_triton() -> None:
    check = (
        "import sys, flashjanus.triton_kernels as t; assert t.unavailable() is None; assert 'triton' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashjanus import triton_kernels

    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert "pip install flashjanus[triton]" in str(triton_kernels.unavailable())
