"""Registers, shared memory and occupancy of compiled kernels, out of what ptxas says."""

from __future__ import annotations

import re
from dataclasses import dataclass

REGISTERS_PER_SM = 65536
WARPS_PER_SM = 64
BLOCKS_PER_SM = 32
SHARED_PER_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
SHARED_PER_BLOCK = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one chip; shared memory in bytes a block, spills and stack in bytes a thread."""

    registers: int
    shared: int
    spills: int
    stack: int

    def occupancy(self, chip: int, warps: int) -> float:
        """Share of the SM's warps that are resident at once, for blocks of `warps`."""
        registers = -(-self.registers * 32 // 256) * 256 * warps  # a warp's are allocated by 256
        blocks = min(BLOCKS_PER_SM, WARPS_PER_SM // warps, REGISTERS_PER_SM // max(registers, 1))
        shared = self.shared + 1024  # the runtime keeps one KiB a block for itself
        return min(blocks, SHARED_PER_SM[chip] // shared) * warps / WARPS_PER_SM


def parse(report: str) -> dict[tuple[str, str], Resources]:
    """Resources by mangled kernel name and chip ("sm_90"), of `ptxas -v`'s report."""
    found = {}
    for part in re.split(r"Compiling entry function ", report)[1:]:
        entry = re.match(r"'(\w+)' for '(\w+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert entry is not None, part
        assert frame is not None, part
        assert registers is not None, part
        stack, stores, loads = map(int, frame.groups())
        spills = stores + loads
        found[entry[1], entry[2]] = Resources(int(registers[1]), int(shared[1]) if shared else 0, spills, stack)
    return found
