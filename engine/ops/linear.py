"""y = x W^T + b. GEMMs come from torch (oneDNN, cuBLASLt).

`split_bias` rounds the product to the output's dtype before it adds the bias, as torch does for inputs that
are not contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..device import native
from ..specs import TensorSpec, product, static
from .base import Bound, Call, Op, Schema, Tunable, normal, register
from .shapes import rows_of


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split_bias: bool = False
) -> torch.Tensor:
    y = x.float() @ weight.float().T
    return y if bias is None else y + bias.float()


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 2 * rows_of(bound) * int(bound["K"]) * int(bound["N"])


def example(
    generator: torch.Generator, dtype: torch.dtype, m: int, k: int, n: int, bias: bool, split_bias: bool = False
) -> Call:
    x, w = normal(generator, m, 1, k, dtype=dtype), (normal(generator, n, k) / k**0.5).to(dtype)
    return Call((x, w, normal(generator, n, dtype=dtype) if bias else None), dict(split_bias=split_bias))


OP = register(
    Op(
        "linear",
        Schema.parse("x: T[*, K], weight: T[N, K], bias?: T[N] -> y: T[*, N]"),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96, bias=False),
            dict(m=1, k=33, n=7, bias=True),
            dict(m=37, k=200, n=65, bias=True),
            dict(m=5, k=40, n=24, bias=True, split_bias=True),
            dict(m=6, k=16, n=8, bias=False),
            dict(m=2, k=70, n=19, bias=True),
            dict(m=3, k=48, n=32, bias=False),
            dict(m=4, k=129, n=5, bias=True),
            dict(m=1, k=2600, n=5, bias=True),
            dict(m=4, k=2056, n=3, bias=False),
            dict(m=2, k=1031, n=3, bias=False),
        ],
        example=example,
    )
)


MAX_ROWS = 4
"""kMaxGemvRows of csrc/kernel.h."""
FEW_TOKENS = 4
"""Of a row, above which it is no longer the weight that a CPU waits for."""


def many_tokens(x: TensorSpec | None) -> str | None:
    """Why x is not for a matrix-vector kernel of a CPU, or None.

    By the tokens of one row, x (B, ..., K): sums then have the same order whoever else is in the batch.
    """
    if x is not None and static(product(x.shape[1:-1])) > FEW_TOKENS:
        return f"a matrix-vector kernel, for at most {FEW_TOKENS} tokens a row"
    return None


def too_many_rows(x: TensorSpec | None) -> str | None:
    """Why a matrix-vector kernel of a GPU, or of weights in 4 bits, cannot take x, or None."""
    if x is not None and static(product(x.shape[:-1])) > MAX_ROWS:
        return f"a matrix-vector kernel, for at most {MAX_ROWS} rows"
    return None


def few_to_decode(x: TensorSpec) -> bool:
    """True for few rows of one token, x (B, ..., K): never for images and prompts, however many are in the batch."""
    return static(product(x.shape[1:-1])) == 1 and too_many_rows(x) is None


def _adds_the_bias_first(attrs: Mapping[str, Any]) -> str | None:
    return "adds the bias before it rounds" if attrs.get("split_bias") else None


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    dtypes = [spec.dtype for spec in specs if spec is not None]
    many = many_tokens(specs[0]) if specs else None
    return _adds_the_bias_first(attrs) or many or native.refuses(device, *dtypes)


def _refuses_cuda(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    dtypes = [spec.dtype for spec in specs if spec is not None]
    many = too_many_rows(specs[0]) if specs else None
    return _adds_the_bias_first(attrs) or many or native.refuses_cuda(device, *dtypes)


@OP.implementation("native", _refuses_native)
def run_native(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, *, split_bias: bool = False
) -> None:
    native.run("gemv", **gemv_arguments(x, weight, y, bias=bias))


@OP.implementation("cuda", _refuses_cuda)
def run_cuda(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, *, split_bias: bool = False
) -> None:
    native.run_cuda("gemv", x.device, **gemv_arguments(x, weight, y, bias=bias))


def gemv_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> dict[str, Any]:
    """Members of GemvParams in csrc/cpu/gemv.h; int8 weights come with their scale."""
    dtype = x.dtype if scale is not None else weight.dtype
    shared = product_arguments(x, weight, y, norm=norm, scale=scale, residual=residual, eps=eps)
    return dict(bias=bias, dtype=dtype, gated=gated, **shared)


def product_arguments(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    *,
    norm: torch.Tensor | None,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> dict[str, Any]:
    """What the structs of kernels that multiply by a weight have in common."""
    x = x.reshape(-1, x.shape[-1]).contiguous()
    return dict(
        x=x,
        norm=norm,
        w=weight,
        scale=scale,
        residual=None if residual is None else residual.contiguous(),
        y=y,
        x_dtype=x.dtype,
        residual_dtype=torch.float32 if residual is None else residual.dtype,
        y_dtype=y.dtype,
        eps=eps,
        rows=len(x),
        columns=x.shape[1],
        out=y.shape[-1],
    )


CUBLAS = (
    Tunable("torch.backends.cuda", "preferred_blas_library", ("cublas", "cublaslt")),
    Tunable("torch.backends.cuda.matmul", "allow_bf16_reduced_precision_reduction", (False,)),
)


@OP.implementation("torch", tunables=CUBLAS)
def run_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, *, split_bias: bool = False
) -> None:
    # contiguous: oneDNN's AMX GEMM pads K with what lies between strided rows, times zero, and 0 * NaN is NaN
    x, y = x.reshape(-1, x.shape[-1]).contiguous(), y.view(-1, y.shape[-1])
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
