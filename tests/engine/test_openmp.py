"""Teams of the OpenMP runtime that are smaller than torch takes them to be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from flashjanus.engine.runtime import openmp
from flashjanus.engine.runtime.isolation import isolated
from small_model import normal, relative_error

MANY = 2 * (os.cpu_count() or 1)
A, B = normal(1, 64, 512).bfloat16(), normal(2, 512, 512).bfloat16()
PRODUCT = A.double() @ B.double()
LIMITED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from small_model import normal, relative_error
from flashjanus import JanusFlow

latents = normal(3, 1, 4, 16, 16)
exact, rounded = (JanusFlow.from_pretrained("shapes", dtype=dtype) for dtype in ("float32", "bfloat16"))
print(relative_error(rounded.decode_latents(latents), exact.decode_latents(latents)), torch.get_num_threads())
"""


@pytest.fixture
def many_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(MANY)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("switch", "value", "after", "team"),
    [("omp_set_dynamic", 1, 0, MANY), ("omp_set_max_active_levels", 0, 8, 1), ("omp_set_dynamic", 0, 0, MANY)],
)
def test_products_of_bfloat16_are_right(many_threads: None, switch: str, value: int, after: int, team: int) -> None:
    put = getattr(ctypes.PyDLL(None), switch)
    put(value)
    try:
        with isolated():
            assert torch.get_num_threads() == team
            product = A @ B
        assert torch.get_num_threads() == MANY
    finally:
        put(after)
    assert relative_error(product, PRODUCT) < 2**-8


def test_a_limit_of_threads_gives_the_same_picture() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"}
    command = [sys.executable, "-c", LIMITED, "tests"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    error, threads = ran.stdout.split()
    assert float(error) < 0.02
    assert threads == "2"


def test_a_new_thread_holds_its_team_too(many_threads: None) -> None:
    """Dynamic adjustment is a thread's own; the number of threads is handed to it when it first asks."""

    def run() -> tuple[int, torch.Tensor]:
        ctypes.PyDLL(None).omp_set_dynamic(1)
        with isolated():
            return torch.get_num_threads(), A @ B

    with ThreadPoolExecutor(1) as pool:
        threads, product = pool.submit(run).result()
    assert threads == MANY
    assert relative_error(product, PRODUCT) < 2**-8


def test_without_openmp_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "runtime", lambda: None)
    with ExitStack() as scope:
        openmp.hold_team(scope)
    assert torch.get_num_threads() >= 1
