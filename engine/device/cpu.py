"""Reads /proc/cpuinfo. Nothing here needs torch."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction-set flags of this machine; empty if the system does not list them."""
    return frozenset(_field(cpuinfo, "flags", "Features").split())


def cpu_vendor(cpuinfo: Path = CPUINFO) -> str:
    """The name of this CPU's vendor, such as GenuineIntel; empty if the system does not tell it."""
    return _field(cpuinfo, "vendor_id")


def _field(cpuinfo: Path, *names: str) -> str:
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")
