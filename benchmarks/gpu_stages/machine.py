"""What the results were measured on: GPU, driver, versions, commit, clocks, and the two ceilings with which times are
compared."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata

import torch
from flashjanus.engine.device import native

from .book import Found
from .clock import summary
from .workload import Setting

PACKAGES = ("torch", "triton", "numpy", "flash-attn", "xformers", "transformers")
ASKED = (
    "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,power.draw,"
    "temperature.gpu"
)


def facts(setting: Setting) -> Found:
    missing = native.available()
    found: Found = {
        "gpu": "none (dry run)",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": said(["nvcc", "--version"]),
        "native": {"missing": missing} if missing else native.build_info(),
    }
    if setting.device.type == "cuda":
        of = torch.cuda.get_device_properties(setting.device)
        found.update(
            gpu=of.name,
            capability=f"{of.major}.{of.minor}",
            multiprocessors=of.multi_processor_count,
            memory_bytes=of.total_memory,
            l2_bytes=of.L2_cache_size,
            nvidia_smi=said(["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv"]),
        )
    return found


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def said(args: list[str]) -> str | None:
    """The output of a program, or None if it is not installed."""
    if shutil.which(args[0]) is None:
        return None
    try:
        done = subprocess.run(args, capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return f"{args[0]} does not answer"
    return (done.stdout or done.stderr).strip()


def ceilings(setting: Setting) -> Found:
    """flops: of a square matrix product in bf16; bytes: read and written by a copy. Both are per second, on random
    data."""
    full = setting.device.type == "cuda"
    size, nbytes = (8192, 4 << 30) if full else (64, 1 << 16)
    a, b = (torch.randn(size, size, device=setting.device).to(torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    if full:
        nbytes = min(nbytes, torch.cuda.mem_get_info(setting.device)[0] // 4)
    source = torch.randint(0, 255, (nbytes // 4,), dtype=torch.int32, device=setting.device)
    target = torch.empty_like(source)
    found: Found = {}
    for name, work, run in (
        ("gemm", 2 * size**3, lambda: torch.mm(a, b, out=c)),
        ("copy", 2 * source.nbytes, lambda: target.copy_(source)),
    ):
        setting.clock.spans(run, 5)
        time = summary(setting.clock.spans(run, 20))
        found[name] = {"time": time, "per_s": work / time["median_s"]}
    return {**found, "flops": found["gemm"]["per_s"], "bytes": found["copy"]["per_s"]}
