"""States in which a caller may have torch, its threads, and the process: a context manager for each."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

MANY = 2 * (os.cpu_count() or 1)
"""Threads, of which the OpenMP runtime gives fewer where it may."""


class Refusing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:  # of session.tokens(), which is no entry
            return func(*args)
        raise AssertionError(f"{func} reached the caller's mode")


@contextmanager
def switched(put: Callable[[Any], object], value: Any, after: Any) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(after)


def threads(count: int) -> AbstractContextManager[None]:
    return switched(torch.set_num_threads, count, torch.get_num_threads())


@contextmanager
def smaller_teams(switch: str, value: int, after: int) -> Iterator[None]:
    with threads(MANY), switched(getattr(ctypes.PyDLL(None), switch), value, after):
        yield


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def anomaly_mode() -> AbstractContextManager[None]:
    return switched(torch.autograd.set_detect_anomaly, True, False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "function mode": Refusing,
    "default dtype float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype float16": lambda: switched(torch.set_default_dtype, torch.float16, torch.float32),
    "matmul precision": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "anomaly mode": anomaly_mode,
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "dynamic teams": lambda: smaller_teams("omp_set_dynamic", 1, 0),
    "no active level": lambda: smaller_teams("omp_set_max_active_levels", 0, 8),
    "warnings are errors": warnings_as_errors,
    "numpy raises": lambda: np.errstate(all="raise"),
}
if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9
    STATES["products in bf16"] = lambda: switched(
        lambda precision: setattr(torch.backends, "fp32_precision", precision), "bf16", "none"
    )
THREADS = {"dynamic teams": MANY}
"""The threads with which a state runs, where it is not 1: bits of torch's products depend on their number."""
