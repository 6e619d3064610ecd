"""The table of what compiled kernels take of a GPU."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_resources import Resources

TABLE = Path(__file__).resolve().parents[2] / "build/kernel-resources.md"
HEADER = "| kernel | chip | registers a thread | shared bytes a block | occupancy |\n| --- | --- | --- | --- | --- |\n"


@pytest.fixture(scope="session")
def record_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """record(kernel, chip, resources, warps=None): a line of build/kernel-resources.md; `warps` of a block.

    Every xdist worker leaves its lines where the others see them and writes the table of all that are there by then.
    """
    lines: list[str] = []

    def record(kernel: str, chip: int, resources: Resources, warps: int | None = None) -> None:
        occupancy = "" if warps is None else f"{resources.occupancy(chip, warps):.0%}"
        lines.append(f"| {kernel} | sm_{chip} | {resources.registers} | {resources.shared} | {occupancy} |\n")

    yield record
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folder = tmp_path_factory.getbasetemp()
    parts = (folder.parent if worker else folder) / "kernel-resources"
    parts.mkdir(exist_ok=True)
    TABLE.parent.mkdir(exist_ok=True)
    with (parts / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (parts / f"{worker or 'all'}.md").write_text("".join(lines))
        found = "".join(part.read_text() for part in parts.glob("*.md"))
        TABLE.write_text(HEADER + "".join(sorted(found.splitlines(keepends=True))))
