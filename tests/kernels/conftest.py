"""The cases that cfg_euler's variants are compared on, and the table of what compiled kernels take of a GPU."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernel_resources import Resources

GUARD = 64  # elements; a multiple of every alignment that a kernel asks for
EPS = 2.0**-23


def poison(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else -0x5A5A5A5B


class Guarded:
    """A copy of a tensor with poison on both sides."""

    def __init__(self, tensor: torch.Tensor, device: str = "cpu") -> None:
        size = tensor.numel() + 2 * GUARD
        self.whole = torch.full((size,), poison(tensor.dtype), dtype=tensor.dtype, device=device)
        self.tensor = self.whole[GUARD:-GUARD].view(tensor.shape)
        self.tensor.copy_(tensor)

    def intact(self) -> bool:
        guards = torch.cat([self.whole[:GUARD], self.whole[-GUARD:]])
        return bool((guards.isnan() if guards.is_floating_point() else guards == poison(guards.dtype)).all())


@dataclass
class Case:
    """Arguments of cfg_euler; rows whose step has reached steps have NaN for a velocity."""

    v: torch.Tensor
    z: torch.Tensor
    guidance: torch.Tensor
    step: torch.Tensor
    steps: torch.Tensor
    patch: int

    def named(self) -> dict[str, torch.Tensor]:
        return {"v": self.v, "z": self.z, "guidance": self.guidance, "step": self.step, "steps": self.steps}

    def arguments(self) -> list[torch.Tensor]:
        return list(self.named().values())

    def sizes(self) -> list[int]:
        """v_dtype, rows, unconditional, height, width, channels and patch, as params.h has them."""
        branches, height, width, _ = self.v.shape
        rows, channels = self.z.shape[:2]
        bf16 = int(self.v.dtype is torch.bfloat16)
        return [bf16, rows, branches - rows, height, width, channels, self.patch]

    def reference(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z and step afterwards, and how far fp32 rounding may move z: half an ulp of a term for each operation."""
        z, step, bound = self.z.clone(), self.step.clone(), torch.zeros_like(self.z)
        images = torch.nn.functional.pixel_shuffle(self.v.float().permute(0, 3, 1, 2), self.patch)
        rows = len(z)
        for r in range(rows):
            if step[r] >= self.steps[r]:
                continue
            cond, size = images[r], images[r].abs()
            if rows + r < len(images):
                g = self.guidance[r]
                cond = g * images[r] - (g - 1) * images[rows + r]
                size = (g * images[r]).abs() + ((g - 1) * images[rows + r]).abs()
            z[r] += cond / self.steps[r]
            bound[r] = 4 * EPS * (self.z[r].abs() + size / self.steps[r])
            step[r] += 1
        return z, step, bound

    def verify(self, z: torch.Tensor, step: torch.Tensor) -> None:
        expected, advanced, bound = self.reference()
        assert torch.equal(step, advanced)
        assert torch.equal(z.isfinite(), expected.isfinite())
        excess = ((z - expected).abs() - bound).max().item()
        assert excess <= 0, f"z is {excess} beyond the rounding bound"


def make_case(
    rows: int,
    unconditional: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    values = channels * patch * patch
    v = torch.randn(rows + unconditional, height, width, values, generator=generator).to(dtype)
    z = torch.randn(rows, channels, height * patch, width * patch, generator=generator)
    guidance = 1 + 4 * torch.rand(rows, generator=generator)
    steps = torch.randint(1, 31, (rows,), generator=generator, dtype=torch.int32)
    # Row 0 stands at its last step, where advancing too early would stop it; every third row is done.
    step = torch.stack([steps[r] - 1 if r % 3 == 0 else steps[r] + r - 2 for r in range(rows)])
    for r in range(rows):
        if step[r] >= steps[r]:
            v[r] = float("nan")
    return Case(v, z, guidance, step.to(torch.int32), steps, patch)


# rows, unconditional, height, width, channels, patch: odd sizes, every branch count, the sizes of the released model
SHAPES = [
    (1, 0, 1, 1, 1, 1),
    (1, 1, 1, 7, 4, 2),
    (2, 1, 5, 3, 3, 2),
    (2, 2, 3, 17, 1, 2),
    (3, 0, 4, 5, 2, 1),
    (3, 2, 9, 11, 4, 2),
    (3, 3, 2, 6, 4, 1),
    (2, 1, 3, 2, 2, 3),
    (1, 1, 24, 24, 4, 2),
]


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    return SimpleNamespace(guard=GUARD, shapes=SHAPES, make_case=make_case, Guarded=Guarded)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", SHAPES, ids=lambda s: "R{}-U{}-{}x{}-C{}-p{}".format(*s))


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
