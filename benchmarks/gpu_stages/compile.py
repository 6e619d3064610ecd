"""Compiles every Triton kernel that the released model's plans may launch, on all cores, before anything waits for one.

Each process takes every n-th form of a node, binds its arguments as a launch would, and launches nothing. Triton's
cache on disk then holds the kernels and their launchers. No measurement depends on this.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .book import Found
from .budget import command

MOST = 12
"""The number of processes; each has to import torch and create a CUDA context."""


def in_parallel(program: Path, until: float, processes: int | None = None) -> Found:
    """Run `program --stage compile --part I --parts N` for every I side by side; return the forms, and the failures in
    words."""
    from concurrent.futures import ThreadPoolExecutor

    count = processes or max(min((os.cpu_count() or 2) - 2, MOST), 1)
    start = time.time()

    def part(i: int) -> tuple[int | None, str]:
        args = [sys.executable, program, "--stage", "compile", "--part", str(i), "--parts", str(count)]
        return command(args, until, {"OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(part, range(count)))
    lines = [line for _, output in done for line in output.splitlines()]
    found: Found = {
        "processes": count,
        "compiled": sum(int(line.split()[1]) for line in lines if line.startswith("compiled ")),
        "failures": sorted({line for line in lines if line.startswith("failed ")}),
        "took_s": round(time.time() - start, 1),
    }
    unfinished = [output.strip()[-300:] for code, output in done if code != 0]
    return found | ({"unfinished": unfinished} if unfinished else {})


def part(index: int, count: int) -> None:
    """Compile one process's share, and print what was done."""
    from flashjanus.engine.ops import all_ops

    compiled = 0
    with warming():
        for node in list(forms())[index::count]:
            op = all_ops()[node.op]
            try:
                op.implementations["triton"].run(*map(memory, (*node.inputs, *node.outputs)), **node.attrs)
                compiled += 1
            except Exception as error:  # the stage after this one looks at each, and says what is wrong
                print(f"failed {node.op}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    print(f"compiled {compiled}")


def forms() -> Iterator[Any]:
    """The nodes of the released model's plans that Triton may serve, each form once, in an order of their own."""
    from released_plans import released_plans

    from .forms import form, specs_of
    from .workload import CUDA

    seen = {}
    for plan in released_plans():
        for node in plan.nodes:
            triton_s = _triton(node.op)
            if triton_s is not None and triton_s.refuses(CUDA, specs_of(node), node.attrs) is None:
                seen.setdefault(form(node), node)
    yield from seen.values()


def _triton(op: str) -> Any:
    from flashjanus.engine.ops import get_op

    return get_op(op).implementations.get("triton")


def memory(ref: Any) -> Any:
    """A tensor like the one that a node reads or writes, on the CPU and never filled."""
    import torch

    if ref is None:
        return None
    return torch.empty_strided([int(size) for size in ref.spec.shape], ref.strides, dtype=ref.spec.dtype)


@contextmanager
def warming() -> Iterator[None]:
    """In this context, Triton's kernels are compiled and loaded for this machine's GPU instead of launched."""
    import torch
    from flashjanus.triton_kernels import attention
    from triton.runtime.jit import JITFunction

    launch, configuration = JITFunction.run, attention.configuration
    here = 10 * torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 90

    def warm(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        kernel._init_handles()  # the launcher is compiled too
        return kernel

    JITFunction.run = warm
    attention.configuration = lambda capability, *others: configuration(here, *others)
    try:
        yield
    finally:
        JITFunction.run, attention.configuration = launch, configuration
