"""A GPU as Triton's launcher sees it, on a machine without one: kernels are specialized, compiled and bound as for
sm_90, and a launch is checked and kept instead of being made.

What takes the time, the way from Triton's own IR to machine code, is left out unless it is asked for:
test_triton_compiled.py has it for the forms of the released model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from flashjanus import triton_kernels
from flashjanus.triton_kernels import attention
from kernel_resources import SHARED_PER_BLOCK
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

CHIP = 90
DEVICES = count(97)
"""Of no real GPU, one for each driver: Triton keeps what it compiled, and its launcher, under this number."""
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
MOST_THREADS = 1024


@dataclass(frozen=True)
class Launch:
    """kernel: its name; arguments: by parameter, the constants among them."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: dict[str, Any] = field(repr=False)


class Driver:
    """What Triton asks of `triton.runtime.driver.active`."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.device = next(DEVICES)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_PER_BLOCK[CHIP],
                "multiprocessor_count": 132,
            },
            load_binary=lambda name, binary, shared, device: (1, 1, 0, 0, MOST_THREADS),
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CHIP, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Called with the grid, six things of the runtime, then the kernel's arguments in order."""
        names = source.fn.arg_names

        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *others: Any) -> None:
            arguments = dict(zip(names, others[-len(names) :], strict=True))
            grid, threads = (x, y, z), metadata.num_warps * 32
            assert all(0 < size <= most for size, most in zip(grid, MOST_BLOCKS, strict=True)), (metadata.name, grid)
            for name, kind in source.signature.items():
                value = arguments[name]
                if kind.startswith("*"):
                    assert isinstance(value, torch.Tensor), f"{metadata.name}: {name} is a {kind}, got {value!r}"
                elif kind in ("i32", "i64"):
                    assert isinstance(value, int), f"{metadata.name}: {name} is an {kind}, got {value!r}"
            self.launches.append(Launch(metadata.name, grid, threads, metadata.shared, arguments))

        return launch


def to_ir_alone(patch: pytest.MonkeyPatch) -> None:
    """Compile no further than to Triton's IR, in which a kernel's types and constants are checked."""
    whole = CUDABackend.add_stages

    def stages(self: Any, found: dict[str, Any], options: Any, *others: Any) -> None:
        whole(self, found, options, *others)
        ir = found["ttir"]
        found.clear()
        found |= {"ttir": ir, "cubin": no_code}

    patch.setattr(CUDABackend, "add_stages", stages)


def no_code(module: Any, metadata: dict[str, Any]) -> bytes:
    name = re.search(r"tt\.func public @(\w+)", str(module))
    assert name is not None
    metadata |= {"name": name[1], "shared": 0, "tmem_size": 0}
    for scratch in ("global_scratch", "profile_scratch"):
        metadata |= {f"{scratch}_size": 0, f"{scratch}_align": 1}
    return b""


@contextmanager
def launched(cache: Path, whole: bool = False) -> Iterator[list[Launch]]:
    """The launches of Triton kernels within, on tensors that lie on the CPU; compiled into the folder `cache`, to
    machine code where `whole`."""
    before, driver = triton.runtime.driver._active, Driver()
    configuration = attention.configuration
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))  # of its own: code that stops at the IR must not be found again
        if not whole:
            to_ir_alone(patch)
        patch.setattr(attention, "configuration", lambda capability, *others: configuration(CHIP, *others))
        patch.setattr(triton_kernels, "unavailable", lambda: None)
        triton.runtime.driver.set_active(driver)
        try:
            yield driver.launches
        finally:
            driver.launches.clear()  # compiled kernels hold the driver, and launches tensors of 30 GB, though unwritten
            triton.runtime.driver._active = before
