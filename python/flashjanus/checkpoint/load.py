"""Reads a layout from a source, tensor by tensor, into tensors of the right dtype and memory order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from flashjanus.checkpoint.layout import Layout, Shape, Source, Target
from flashjanus.checkpoint.names import foreign_names
from flashjanus.checkpoint.sources import TensorInfo, TensorSource
from flashjanus.engine.formats.rows import quantize
from flashjanus.errors import CheckpointError

CPU = torch.device("cpu")
LISTED = 20
CHUNK_BYTES = 2**20


def check_layout(layout: Layout, source: TensorSource, *, allow_unused: Sequence[str] = ()) -> list[str]:
    """Every missing, misshapen, wrongly typed or unexpected tensor, one line each. Reads no data."""
    stored = source.names()
    problems: list[str] = []
    claimed: set[str] = set()
    for target in layout:
        for wanted in (*target.sources, *target.scales):
            name = stored_name(wanted, stored)
            if target.same_as:
                claimed.update(wanted.names)
            elif name is None:
                problems.append(f"missing: {wanted.names[0]} {_shape(wanted.shapes[0])}")
            else:
                claimed.add(name)
                problems += _misfits(name, wanted, stored[name])
    patterns = (*layout.unused, *allow_unused)
    for name, info in stored.items():
        if name not in claimed and not any(fnmatchcase(name, pattern) for pattern in patterns):
            problems.append(f"left over: {name} {_shape(info.shape)}")
    return problems


def load_weights(
    layout: Layout,
    source: TensorSource,
    *,
    matrix_dtype: torch.dtype,
    vector_dtype: torch.dtype,
    allow_unused: Sequence[str] = (),
    device: torch.device = CPU,
    quantized: Callable[[Target], torch.dtype | None] = lambda target: None,
    finish: Callable[[Target, torch.Tensor, torch.Tensor | None], Mapping[str, torch.Tensor]] | None = None,
    placed: Callable[[Target, Mapping[str, torch.Tensor]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Target name -> tensor on `device`. Beyond the result, memory holds about one source tensor at a time.

    allow_unused: patterns (fnmatch) of further tensors that may be left over. quantized(target) -> the 8-bit dtype to
    quantize a target to from the stored values, or None; a checkpoint stored in that dtype gives the same bits.
    finish(target, tensor, scale) -> tensors by name to keep instead of the tensor and, in 8 bits, its scale.
    placed(target, tensors) is called with each target's tensors on `device`. Raises CheckpointError, before anything is
    allocated, listing every tensor that is missing, left over, misshapen or of a dtype that is no weight's; and later
    for the first tensor that holds NaN or inf, or does not fit in the dtype asked for.
    """
    problem = mismatch(layout, source, allow_unused=allow_unused)
    if problem is not None:
        raise CheckpointError(problem)
    weights: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for target in layout:
            if target.same_as:
                weights[target.name] = weights[target.same_as]
                continue
            dtype = matrix_dtype if target.kind == "matrix" else vector_dtype
            in_8_bits = getattr(torch, target.sources[0].dtypes[0]) if target.scales else quantized(target)
            order = torch.channels_last if target.channels_last else torch.contiguous_format
            weight = torch.empty(target.shape, dtype=in_8_bits or dtype, memory_format=order)
            scale = torch.empty(target.shape[:1], dtype=torch.float32) if in_8_bits else None
            if scale is None or target.scales:
                _stack(weight, target.sources, source, target.permute)
            else:
                _stack_quantized(weight, scale, target.sources, source)
            if scale is not None and target.scales:
                _stack(scale, target.scales, source)
            kept = (_as_stored if finish is None else finish)(target, weight, scale)
            there = {name: tensor.to(device) for name, tensor in kept.items()}
            weights.update(there)
            if placed is not None:
                placed(target, there)
    source.close()
    return weights


def mismatch(layout: Layout, source: TensorSource, *, allow_unused: Sequence[str] = ()) -> str | None:
    """Why a source's tensors do not match a layout: the common cause, if there is one, else the list of mismatches."""
    problems = check_layout(layout, source, allow_unused=allow_unused)
    if not problems:
        return None
    stored = source.names()
    cause = foreign_names(stored)
    if cause is None and stored and not any(stored_name(part, stored) for target in layout for part in target.sources):
        cause = f"none of its {len(stored)} tensors, such as {next(iter(stored))}, is one that config.json asks for"
    return _summary(source.label, problems) if cause is None else f"{source.label}: {cause}"


def _summary(label: str, problems: Sequence[str]) -> str:
    """The first LISTED problems under a headline that counts all of them by kind."""
    kinds: dict[str, int] = {}
    for problem in problems:
        kind = problem.split(":", 1)[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "\n  ".join([f"{label}: tensors do not match config.json ({counts})", *problems[:LISTED], *more])


def _as_stored(target: Target, weight: torch.Tensor, scale: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {target.name: weight} if scale is None else {target.name: weight, f"{target.name}.scale": scale}


def quantize_rows(weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, label: str) -> None:
    """q (N, K) and scale (N,) float32 of a stored weight (N, K). CheckpointError where it is not finite in float32."""
    for rows in row_chunks(weight):
        quantize(weight[rows].to(torch.float32, copy=True), q[rows], scale[rows])
        if not scale[rows].isfinite().all():
            check_finite(weight[rows], weight[rows].float(), label)


def row_chunks(weight: torch.Tensor) -> Iterator[slice]:
    """Slices of rows that take about CHUNK_BYTES in float32."""
    step = max(1, CHUNK_BYTES // (4 * math.prod(weight.shape[1:])))
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _stack_quantized(q: torch.Tensor, scale: torch.Tensor, parts: Sequence[Source], source: TensorSource) -> None:
    """Like `_stack`, in 8 bits. Each row is quantized by itself, so the order of stacking does not matter."""
    row = 0
    for name, tensor in _read(parts, source):
        rows = slice(row, row + len(tensor))
        quantize_rows(tensor, q[rows], scale[rows], f"{source.label}: {name}")
        row += len(tensor)


def _stack(weight: torch.Tensor, parts: Sequence[Source], source: TensorSource, permute: tuple[int, ...] = ()) -> None:
    """Stack the tensors `parts` of `source` along dim 0."""
    row = 0
    for name, tensor in _read(parts, source):
        row += _fill(weight, row, tensor.permute(permute) if permute else tensor, f"{source.label}: {name}")


def _read(parts: Sequence[Source], source: TensorSource) -> Iterator[tuple[str, torch.Tensor]]:
    for wanted in parts:
        name = stored_name(wanted, source.names())
        assert name is not None  # check_layout has reported it otherwise
        yield name, source.read(name)


def _fill(weight: torch.Tensor, row: int, tensor: torch.Tensor, label: str) -> int:
    """Convert `tensor` into weight[row:], a chunk of rows at a time. Returns the number of rows filled."""
    row_shape = weight.shape[1:]
    rows = tensor.numel() // math.prod(row_shape)
    tensor = tensor.reshape(rows, *row_shape)
    step = max(1, CHUNK_BYTES // (math.prod(row_shape) * tensor.element_size()))
    for start in range(0, rows, step):
        part = tensor[start : start + step]
        into = weight[row + start : row + start + len(part)]
        into.copy_(part)
        # One pass without a temporary: it is not finite if a value is NaN or inf, or if finite ones overflow.
        if into.dtype is torch.float8_e4m3fn:  # torch can neither sum nor test this dtype
            part, into = part.float(), into.float()
        if not math.isfinite(into.sum().item()):
            check_finite(part, into, label)
    return rows


def check_finite(part: torch.Tensor, into: torch.Tensor, label: str) -> None:
    """Raise CheckpointError if `part`, or `into` (the same values in another dtype), holds NaN or inf."""
    if not torch.isfinite(part).all():
        raise CheckpointError(f"{label}: holds NaN or inf; the file is damaged or its training diverged")
    if not torch.isfinite(into).all():
        largest = part.abs().max().item()
        raise CheckpointError(f"{label}: values up to {largest:.3g} overflow {into.dtype}; choose a wider dtype")


def stored_name(wanted: Source, stored: Mapping[str, TensorInfo]) -> str | None:
    """The name, among its possible ones, under which a tensor is stored; None if it is absent."""
    return next((name for name in wanted.names if name in stored), None)


def _misfits(name: str, wanted: Source, info: TensorInfo) -> list[str]:
    found = []
    if info.shape not in wanted.shapes:
        found.append(f"misshapen: {name} expected {_shape(wanted.shapes[0])}, got {_shape(info.shape)}")
    if info.dtype not in wanted.dtypes:
        one_of = "one of " if len(wanted.dtypes) > 1 else ""
        found.append(f"wrong dtype: {name} expected {one_of}{', '.join(wanted.dtypes)}, got {info.dtype}")
    return found


def _shape(shape: Shape) -> str:
    return str(list(shape))
