"""y = conv2d(x) + b on NHWC tensors. Convolutions come from torch (oneDNN, cuDNN).

On a GPU, cuDNN writes straight into y. torch's own convolution allocates its result, and the copy out of it would be
an extra node in a CUDA graph, after which no kernel can start early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import SchemaError
from ..specs import Size, TensorSpec
from .base import Bound, Call, Op, Schema, Tunable, normal, register
from .dims import elements


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int
) -> torch.Tensor:
    b = None if bias is None else bias.float()
    return F.conv2d(x.float().permute(0, 3, 1, 2), weight.float(), b, stride, padding).permute(0, 2, 3, 1)


def out_size(size: Size, kernel: int, stride: int, padding: int) -> Size:
    if isinstance(size, int):
        return (size + 2 * padding - kernel) // stride + 1
    if stride != 1:
        raise SchemaError(f"a strided convolution needs its input size as a number, got the symbol {size}")
    return size + (2 * padding - kernel + 1)


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    return {
        "P": out_size(bound["H"], bound["kh"], attrs["stride"], attrs["padding"]),
        "Q": out_size(bound["W"], bound["kw"], attrs["stride"], attrs["padding"]),
    }


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 2 * elements(bound, "B", "P", "Q", "O", "I", "kh", "kw")


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    size: int,
    cin: int,
    cout: int,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
) -> Call:
    x = normal(generator, 2, size, size + 1, cin, dtype=dtype)
    weight = (normal(generator, cout, cin, kernel, kernel) / (cin * kernel**2) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Call(
        (x, weight, normal(generator, cout, dtype=dtype) if bias else None), dict(stride=stride, padding=padding)
    )


OP = register(
    Op(
        "conv2d",
        Schema.parse("x: T[B, H, W, I], weight: T[O, I, kh, kw], bias?: T[O] -> y: T[B, P, Q, O]", derive),
        reference,
        flops,
        cases=[
            dict(size=6, cin=8, cout=5, kernel=3, stride=1, padding=1, bias=True),
            dict(size=8, cin=4, cout=16, kernel=2, stride=2, padding=0, bias=True),
            dict(size=5, cin=3, cout=7, kernel=1, stride=1, padding=0, bias=False),
        ],
        example=example,
    )
)


SEARCH = False
"""Let cuDNN time its plans when it first meets a size, whatever torch.backends.cudnn.benchmark says."""


def _refuses_cudnn(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if device.type != "cuda":
        return f"runs on a CUDA device, not on {device.type}"
    return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"  # type: ignore[no-untyped-call]


@OP.implementation("cudnn", _refuses_cudnn, tunables=[Tunable(__name__, "SEARCH", (True,))])
def run_cudnn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    *,
    stride: int,
    padding: int,
) -> None:
    cudnn = torch.backends.cudnn
    torch.ops.aten.cudnn_convolution.out(
        x.permute(0, 3, 1, 2),
        weight,
        [padding, padding],
        [stride, stride],
        [1, 1],
        1,
        SEARCH or cudnn.benchmark,
        cudnn.deterministic,
        # never TF32, which means nothing in 16 bits; but it is part of torch's key of a plan, as the search is not
        SEARCH and x.dtype.itemsize < 4,
        out=y.permute(0, 3, 1, 2),
    )
    if bias is not None:
        y.add_(bias)


@OP.implementation("torch")
def run_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    *,
    stride: int,
    padding: int,
) -> None:
    y.copy_(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1))
