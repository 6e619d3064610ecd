"""y = act(rms_norm(x) W^T + bias) + residual, with W in any format: the one matrix product by a weight.

act(gate, up) = silu(gate) * up where it is "gated_silu", over the first and the last half of W's rows; "gelu" is the
exact one. `format` names how weight and scale hold W (engine/formats). x is rounded as the format's kernels do: in the
groups of columns that they quantize, or after a norm to W's dtype; or it comes in 8 bits, a scale `x_scale` for each
row. `split_bias` rounds the product to the output's dtype before it adds the bias, as torch does for inputs that
are not contiguous.
A graph says x, weight and bias; the plan decides the rest (plan/linear.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..device.capabilities import widening_bfloat16_is_slower
from ..errors import SchemaError
from ..formats import FORMATS, rows
from ..specs import TensorSpec, product, static
from . import activations, rms_norm
from .base import Given, Reason, Tunable, define
from .dims import outputs_of_row
from .linear_cases import CASES, example
from .quantize import too_many_channels
from .refusals import MAX_NORM_CHANNELS, channels_of
from .schema import Bound

ACTIVATIONS = ("none", "gated_silu", "gelu")
"""In the order of Activation in csrc/cpu/amx/tiled_linear.h."""
MAX_ROWS = 4
"""kMaxGemvRows of csrc/kernel.h."""
FEW_TOKENS = 4
"""Of a row, above which it is no longer the weight that a CPU waits for."""
Specs = Sequence[TensorSpec | None]


def fused(call: Given) -> bool:
    """True if a call has a norm, an activation or a residual in it."""
    return call.norm is not None or call.residual is not None or call.act != "none"


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """N, M, the outputs of a row, and Y, their dtype; refuses a weight that its format does not hold."""
    name, act, given = attrs.get("format", "dense"), attrs.get("act", "none"), bound["given"]
    x, weight, scale, k = given["x"], given["weight"], given["scale"], bound["K"]
    if name not in FORMATS or act not in ACTIVATIONS:
        known = f"format out of {', '.join(FORMATS)} and act out of {', '.join(ACTIVATIONS)}"
        raise SchemaError(f"expected {known}, got {name!r}, {act!r}")
    fmt, halves = FORMATS[name], 2 if act == "gated_silu" else 1
    n, columns = fmt.size(weight.shape)
    multiplies = weight.dtype if given["norm"] is not None or scale is not None else x.dtype
    expected = fmt.specs(static(n), static(k), multiplies)
    if (weight, scale) != expected:
        due, got = (" and ".join(map(str, filter(None, specs))) for specs in (expected, (weight, scale)))
        raise SchemaError(f"argument 'weight' expected in format {name} as {due}, got {got}")
    if static(n) % halves:
        raise SchemaError(f"expected an even number of rows of weight for gates and ups, got {n}")
    reason = fmt.refuses(static(n) // halves, static(columns), weight.dtype)
    if reason is not None:
        raise SchemaError(reason)
    if given["x_scale"] is not None and x.dtype is not weight.dtype:
        raise SchemaError(f"expected x and weight in the same 8 bits, got {x} and {weight}")
    if bound.get("N", n) != n:
        raise SchemaError(f"expected a bias of {n} values, got {bound['N']}")
    return {"N": n, "Y": attrs.get("dtype") or x.dtype, **outputs_of_row(bound, static(n) // halves)}


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    format: str = "dense",
    act: str = "none",
    eps: float = 0.0,
    split_bias: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    fmt, x = FORMATS[format], x.float()
    if norm is not None:
        x = rms_norm.reference(x, norm, eps, torch.float32)
    if fmt.group is not None:
        q, steps = rows.reference(_grouped(x, fmt.group))
        x = (q.round() * steps[..., None]).reshape(x.shape)
    if x_scale is not None:
        x = x * x_scale.float()[..., None]
    matrix, factors = fmt.matrix(weight, scale, x.dtype)
    y = x @ matrix.T
    if factors is not None:
        y = y * factors.float()
    y = y if bias is None else y + bias.float()
    if act != "none":
        y = activations.reference_silu_mul(y) if act == "gated_silu" else activations.reference_gelu(y)
    return y if residual is None else y + residual.float()


def _grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], -1, group or x.shape[-1])


OP = define(
    "linear",
    "x: X[*, K], weight: any[...], bias?: B[N], scale?: any[...], x_scale?: f32[*], norm?: f32[K],"
    " residual?: R[*, M] -> y: Y[*, M]",
    reference,
    CASES,
    example,
    derive=derive,
    defaults={"format": "dense", "act": "none", "eps": 0.0, "split_bias": False, "dtype": None},
    flops="2*rows*K*N",
)


def many_tokens(x: TensorSpec) -> bool:
    """Whether a CPU multiplies x (B, ..., K) by another kernel than its matrix-vector kernel.

    By the tokens of one row: sums then have the same order whoever else is in the batch.
    """
    return static(product(x.shape[1:-1])) > FEW_TOKENS


def too_many_rows(x: TensorSpec | None) -> str | None:
    """Why a matrix-vector kernel of a GPU, or of weights in 4 bits, cannot take x, or None."""
    if x is not None and static(product(x.shape[:-1])) > MAX_ROWS:
        return f"a matrix-vector kernel, for at most {MAX_ROWS} rows"
    return None


def few_to_decode(x: TensorSpec) -> bool:
    """True for few rows of one token, x (B, ..., K): never for images and prompts, however many are in the batch."""
    return static(product(x.shape[1:-1])) == 1 and too_many_rows(x) is None


def by_amx(call: Given) -> str | None:
    fmt = FORMATS[call.format]
    if fmt.name not in ("tiles", "int8_tiles"):
        return f"reads weights in tiles, not {fmt.name}"
    if call.split_bias:
        return "adds the bias before it rounds"
    return None if fmt.group is None else too_many_channels(channels_of(call.x))


def by_nibbles(call: Given) -> str | None:
    """Why the kernel for weights in 4 bits cannot take this call, or None."""
    if call.bias is not None or call.act == "gelu":
        return "adds no bias to 4 bits, and has no GELU after them"
    return too_many_rows(call.x) or too_many_channels(channels_of(call.x))


def by_gemv(call: Given) -> str | None:
    """Why a matrix-vector kernel cannot take this call, however few its rows are, or None."""
    x, weight = call.x, call.weight
    if call.format not in ("dense", "int8"):
        return f"widens weights in int8, row by row, and reads dense ones, not {call.format}"
    if call.x_scale is not None:
        return "takes inputs as they are, not in 8 bits"
    if call.split_bias:
        return "adds the bias before it rounds"
    if fused(call) and (call.bias is not None or call.act == "gelu"):
        return "takes neighbors without a bias, and has no GELU"
    if call.norm is not None and channels_of(x) > MAX_NORM_CHANNELS:
        return f"normalizes at most {MAX_NORM_CHANNELS} channels"
    if call.residual is not None and call.residual.dtype is not torch.float32:
        return f"adds to a residual stream of float32, not {call.residual.dtype}"
    if call.format == "dense" and x.dtype is not weight.dtype and x.dtype is not torch.float32:
        return f"multiplies {x.dtype} by {weight.dtype} only after a norm of float32"
    return None


def gated_alone(call: Given) -> str | None:
    if call.act == "gated_silu" and call.norm is call.residual is None and call.format != "int4":
        return "a gated SiLU alone: its dtypes do not tell whether the linear has to round before it"
    return None


def members(call: Given) -> dict[str, Any]:
    """Of any of the kernels that multiply by a weight; int8 weights come with their scale."""
    x = call.x.reshape(-1, call.x.shape[-1]).contiguous()
    return dict(
        x=x,
        w=call.weight,
        dtype=x.dtype if call.scale is not None else call.weight.dtype,
        act=ACTIVATIONS.index(call.act),
        gated=call.act == "gated_silu",
        rows=len(x),
        columns=x.shape[1],
        out=call.y.shape[-1],
    )


def by_gemm(call: Given) -> str | None:
    """Why the kernel for many tokens cannot take this call, or None."""
    if call.format not in ("dense", "int8"):
        return f"multiplies many tokens by dense weights and int8, row by row, not by {call.format}"
    if call.x_scale is not None or fused(call):
        return "multiplies many tokens as they are, without neighbors"
    if call.split_bias:
        return "adds the bias before it rounds"
    if call.format == "dense" and call.x.dtype is not call.weight.dtype:
        return f"multiplies many tokens in the weight's {call.weight.dtype}, not in {call.x.dtype}"
    return None


def native_kernel(call: Given) -> tuple[str, Reason]:
    """The kernel for a call on a CPU, and what may be against it."""
    if call.format == "int4":
        return "int4_linear", by_nibbles
    return ("gemm", by_gemm) if many_tokens(call.x) else ("gemv", by_gemv)


def slower_native(call: Given) -> str | None:
    if native_kernel(call)[0] != "gemm":
        return gated_alone(call)
    return widening_bfloat16_is_slower()


OP.kernel("amx", members, by_amx, kernel="tiled_linear")


OP.kernel(
    "native",
    members,
    lambda call: native_kernel(call)[1](call),
    slower_native,
    kernel=lambda call: native_kernel(call)[0],
)


OP.kernel("cuda", members, lambda call: by_gemv(call) or too_many_rows(call.x), gated_alone, kernel="gemv")

CUBLAS = (
    Tunable("torch.backends.cuda", "preferred_blas_library", ("cublas", "cublaslt")),
    Tunable("torch.backends.cuda.matmul", "allow_bf16_reduced_precision_reduction", (False,)),
)


def by_torch(call: Given) -> str | None:
    if call.split_bias and (call.format != "dense" or fused(call)):
        return "rounds before it adds its bias for dense weights alone, without neighbors"
    return None


def in_parts(call: Given) -> str | None:
    if call.x_scale is not None:
        return "multiplies floats, for which inputs stay as they are"
    if fused(call) and FORMATS[call.format].by_rows:
        return "no faster than the parts, which have kernels of their own"
    return None


@OP.implementation("torch", cannot=by_torch, should_not=in_parts, tunables=CUBLAS)
def run_torch(call: Given) -> None:
    weight, bias, x_scale, y = call.weight, call.bias, call.x_scale, call.y
    # contiguous: oneDNN's AMX GEMM pads K with what lies between strided rows, times zero, and 0 * NaN is NaN
    fmt, x = FORMATS[call.format], call.x.contiguous()
    alone = x_scale is None and not fused(call) and fmt.by_rows
    if alone and fmt.name == "dense":
        _multiply(x.view(-1, x.shape[-1]), weight, bias, y.view(-1, y.shape[-1]), call.split_bias)
        return
    if call.norm is not None:
        x = rms_norm.normalize(x, call.norm, call.eps)
    if call.scale is None:
        x = x.to(weight.dtype)
    if fmt.group is not None:
        q, steps = rows.quantized(_grouped(x, fmt.group))
        x = (q * steps[..., None]).view(x.shape)
    # 8 bits row by row are multiplied in x's dtype; what is unpacked in every call is for comparison, not for speed
    matrix, factors = fmt.matrix(weight, call.scale, x.dtype if alone else torch.float32)
    product = ((x if alone else x.float()) @ matrix.t()).float()
    for factor in (None if x_scale is None else x_scale[..., None], factors):
        product = product if factor is None else product * factor
    if bias is not None:
        product += bias
    if call.act != "none":
        product = activations.silu_mul(product) if call.act == "gated_silu" else F.gelu(product)
    y.copy_(product if call.residual is None else product + call.residual)


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, split_bias: bool
) -> None:
    added = None if split_bias else bias
    if len(x) == 1:  # one token: a matrix-vector product reads the weight 1.4 times as fast as torch's GEMM on a CPU
        if added is None:
            torch.mv(weight, x[0], out=y[0])
        else:
            torch.addmv(added, weight, x[0], out=y[0])
    elif added is None:
        torch.mm(x, weight.t(), out=y)
    else:
        torch.addmm(added, x, weight.t(), out=y)
    if bias is not None and split_bias:
        y.add_(bias)
