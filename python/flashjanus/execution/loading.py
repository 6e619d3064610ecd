"""Loads weights from a source and converts them to the form in which a model keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from flashjanus.checkpoint import Layout, Target, TensorSource, load_weights
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.engine.device import native
from flashjanus.engine.device.capabilities import no_e4m3
from flashjanus.engine.runtime.cuda import Gpu
from flashjanus.errors import InputError
from flashjanus.model import Policy

RELOAD = "load the checkpoint that it was made from"
Placed: TypeAlias = Callable[[Policy, Target, Mapping[str, torch.Tensor]], None]
"""placed(policy, target, tensors): the tensors of a target in the place where they stay."""


def policy(
    device: torch.device,
    dtype: torch.dtype,
    numerics: str,
    asked: str | None,
    stored: str | None,
    implementations: Mapping[str, Any],
) -> Policy:
    """Choose the dtypes of a model and the form of its weights. Raises InputError if the choices conflict.

    asked, stored: a quantization, or None; the default is the one in which the checkpoint is stored. Weights are kept
    in AMX tiles if this machine has them and no implementation of a plain linear is asked for.
    """
    quantization, loadable = stored if asked is None else asked, _loadable(stored)
    if quantization is not None and quantization not in loadable:
        choices = " or ".join(map(repr, (None, *loadable)))
        since, instead = "", ""
        if stored is not None:
            since, instead = f" because the checkpoint is stored in {stored}", f"; {RELOAD}"
        raise InputError(f"quantization: expected {choices}{since}, got {quantization!r}{instead}")
    if quantization is not None and numerics == "official":
        raise InputError(f"numerics: expected 'exact' with quantization {quantization!r}, got 'official'")
    if quantization is not None and dtype is torch.float16:
        raise InputError(f"quantization: expected dtype bfloat16 or float32 with {quantization!r}, got float16")
    asked_for = implementations.get("linear", ("amx", "native"))
    linears = (asked_for,) if isinstance(asked_for, str) else asked_for
    multiplied = dtype is torch.bfloat16 or quantization is not None
    no_fp8 = no_e4m3(device) if quantization == "fp8" else None
    if no_fp8 is not None:
        instead = "'int8' works everywhere" if "int8" in loadable else f"the checkpoint is stored in {stored}: {RELOAD}"
        raise InputError(f"quantization: {no_fp8}; {instead}")
    reads_nibbles = None if "native" in linears else "the requested implementations of linear are without 'native'"
    no_nibbles = native.refuses(device) or reads_nibbles
    if quantization == "int4" and no_nibbles is not None:
        raise InputError(f"quantization: 'int4' needs a CPU's native kernels: {no_nibbles}; 'int8' works everywhere")
    tiled = native.refuses_amx(device) is None and multiplied and numerics == "exact" and "amx" in linears
    return Policy.of(dtype, numerics, tiled, quantization)


def _loadable(stored: str | None) -> list[str]:
    """The quantizations in which a checkpoint stored as `stored` can be loaded: those made from the same 8 bits."""
    if stored is None:
        return list(QUANTIZATIONS)
    return [name for name, its in QUANTIZATIONS.items() if its.stored == QUANTIZATIONS[stored].stored]


def load(
    layout: Layout,
    source: TensorSource,
    policy: Policy,
    device: torch.device,
    gpu: Gpu | None,
    name: str,
    placed: Placed | None = None,
) -> dict[str, torch.Tensor]:
    """Load the tensors of a layout, in the form that `policy` gives, by name. Raises CheckpointError,
    OutOfMemoryError."""
    try:
        return load_weights(
            layout,
            source,
            matrix_dtype=policy.matrix,
            vector_dtype=policy.vector,
            device=device if gpu is None else gpu.device,
            quantized=policy.quantized,
            finish=policy.pack,
            placed=None if placed is None else partial(placed, policy),
        )
    except torch.OutOfMemoryError as error:
        if gpu is None:
            raise
        size = sum(math.prod(t.shape) for t in layout if not t.same_as) * policy.matrix.itemsize
        raise gpu.out_of_memory(name, {f"weights in {policy.matrix}": size}) from error


@dataclass(frozen=True)
class Choices:
    """The options of a model, as they were given."""

    device: Any
    dtype: Any
    vae_dtype: Any
    numerics: str
    implementations: Mapping[str, str | Sequence[str]] | None
    cuda_graphs: bool
    buckets: Mapping[str, Sequence[int]] | None
    quantization: str | None
