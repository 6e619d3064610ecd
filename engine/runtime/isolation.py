"""Isolates computations from the state of the caller's process and thread.

Isolated from: default devices and other torch function modes, autocast, inference mode, reduced precision of float32
products, and OpenMP teams that are smaller than assumed (see openmp.py). The default dtype belongs to all threads of a
process and is left as it is, so code always names the dtype that it means.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch

from .openmp import hold_team

_here = threading.local()
"""`scope`: what this thread has set aside, or None."""


def within() -> bool:
    """True within `isolated`."""
    return getattr(_here, "scope", None) is not None


@contextmanager
def isolated() -> Iterator[None]:
    """Within it, the caller's state has no effect. Nested uses do nothing. Raises DeviceError."""
    if within():
        yield
        return
    with ExitStack() as scope:
        _put_aside(scope)
        _here.scope = scope
        try:
            yield
        finally:
            _here.scope = None


@contextmanager
def callers_state() -> Iterator[None]:
    """Restores the caller's state inside `isolated`, to call functions of theirs."""
    scope = getattr(_here, "scope", None)
    if scope is None:
        yield
        return
    scope.close()
    _here.scope = None
    try:
        yield
    finally:
        _put_aside(scope)
        _here.scope = scope


def _put_aside(scope: ExitStack) -> None:
    scope.enter_context(torch._C.DisableTorchFunction())
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            scope.enter_context(torch.autocast(device_type, enabled=False))
    if torch.is_inference_mode_enabled():  # tensors made in it could not be written by the caller or by a later call
        scope.enter_context(torch.inference_mode(False))
    scope.enter_context(EXACT_PRODUCTS)
    hold_team(scope)


Undo = Callable[[], object]


class Switches:
    """Within it, process-wide switches are set. `turn` sets them and returns the functions that restore them.

    The first thread that enters sets them, and the last that leaves restores them. A forked child starts outside.
    """

    def __init__(self, turn: Callable[[], list[Undo]]) -> None:
        self._turn = turn
        self._lock = threading.RLock()
        self._within = 0
        self._undo: list[Undo] = []
        if hasattr(os, "register_at_fork"):
            lock = self._lock
            os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=self._forked)

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._undo = self._turn()
            self._within += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._turn_back()

    def _turn_back(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _forked(self) -> None:
        self._within = 0
        self._turn_back()
        self._lock.release()


def _exact_products() -> list[Undo]:
    """No oneDNN in bfloat16, no cuBLAS in TF32."""
    undo: list[Undo] = []
    with suppress(RuntimeError):  # torch's older switch raises if the newer ones were used
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.append(partial(torch.set_float32_matmul_precision, before))
    backends: Any = torch.backends
    if hasattr(backends, "fp32_precision"):  # since torch 2.9
        undo += _exact(backends.mkldnn.matmul, backends.mkldnn)
        undo += _exact(backends.mkldnn.conv, backends.mkldnn)
        undo += _exact(backends.cuda.matmul, backends.cudnn)
    return undo


def _exact_gpu_convolutions() -> list[Undo]:
    """No cuDNN in TF32, which is its default."""
    cudnn: Any = torch.backends.cudnn
    if hasattr(torch.backends, "fp32_precision"):
        return _exact(cudnn.conv, cudnn)
    if not cudnn.allow_tf32:
        return []
    cudnn.allow_tf32 = False
    return [partial(setattr, cudnn, "allow_tf32", True)]


def _exact(products: Any, family: Any) -> list[Undo]:
    before = products.fp32_precision
    if before in ("ieee", "none"):
        return []
    products.fp32_precision = "ieee"
    # "none" follows the family; the value read does not tell whether it was set or inherited.
    return [partial(setattr, products, "fp32_precision", "none" if before == family.fp32_precision else before)]


EXACT_PRODUCTS, EXACT_GPU_CONVOLUTIONS = Switches(_exact_products), Switches(_exact_gpu_convolutions)
