"""What this machine has, read from the operating system alone (no torch)."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from flashjanus.engine.device.cpu import cpu_flags

# The sets that kernels or BLAS libraries dispatch on, in the order in which they appeared.
INSTRUCTION_SETS = (
    "sse4_2 avx f16c fma avx2 avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2 sme"
)


def machine_facts(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> dict[str, Any]:
    """{"cpu", "architecture", "cores", "usable_threads", "instruction_sets", "memory_bytes", "available_bytes"}.

    Unknown facts are None. `memory_bytes` honors a container's limit.
    """
    cpuinfo = _read(proc / "cpuinfo")
    meminfo = _read(proc / "meminfo")
    total, available = _kilobytes(meminfo, "MemTotal"), _kilobytes(meminfo, "MemAvailable")
    limits = [_read(cgroup / name).strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    known = [size for size in (total, *(int(limit) for limit in limits if limit.isdigit())) if size is not None]
    memory = min(known, default=None)
    flags = cpu_flags(proc / "cpuinfo")
    return {
        "cpu": _field(cpuinfo, "model name") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores": _physical_cores(cpuinfo),
        "usable_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS.split() if name in flags],
        "memory_bytes": memory,
        "available_bytes": available if available is None or memory is None else min(available, memory),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def _kilobytes(meminfo: str, name: str) -> int | None:
    value = _field(meminfo, name)
    return int(value.split()[0]) * 1024 if value else None


def _physical_cores(cpuinfo: str) -> int | None:
    """Distinct (package, core) pairs: hyper-threads share one."""
    packages = re.findall(r"^physical id\s*:\s*(\d+)", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)", cpuinfo, re.MULTILINE)
    return len(set(zip(packages, cores, strict=False))) or os.cpu_count()
