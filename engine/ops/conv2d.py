"""y = conv2d(x) + b on NHWC tensors. Convolutions come from torch (oneDNN, cuDNN).

Where a CPU multiplies bfloat16 slower than float32, bfloat16 is widened to float32 first.

On a GPU, cuDNN writes straight into y. torch's own convolution allocates its result, and the copy out of it would be
an extra node in a CUDA graph, after which no kernel can start early.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..device import native
from ..device.capabilities import widening_bfloat16_is_slower
from ..errors import SchemaError
from ..specs import Size
from .base import Call, Given, Tunable, define, normal
from .schema import Bound


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


OP = define(
    "conv2d",
    "x: T[B, H, W, I], weight: T[O, I, kh, kw], bias?: T[O] -> y: T[B, P, Q, O]",
    reference,
    cases=[
        dict(size=6, cin=8, cout=5, kernel=3, stride=1, padding=1, bias=True),
        dict(size=8, cin=4, cout=16, kernel=2, stride=2, padding=0, bias=True),
        dict(size=5, cin=3, cout=7, kernel=1, stride=1, padding=0, bias=False),
    ],
    example=example,
    derive=derive,
    flops="2*B*P*Q*O*I*kh*kw",
)


SEARCH = False
"""Let cuDNN time its plans when it first meets a size, whatever torch.backends.cudnn.benchmark says."""


def has_cudnn(device: torch.device, *dtypes: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"runs on a CUDA device, not on {device.type}"
    return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"  # type: ignore[no-untyped-call]


@OP.implementation("cudnn", has_cudnn, tunables=[Tunable(__name__, "SEARCH", (True,))])
def run_cudnn(call: Given) -> None:
    cudnn = torch.backends.cudnn
    torch.ops.aten.cudnn_convolution.out(
        call.x.permute(0, 3, 1, 2),
        call.weight,
        [call.padding, call.padding],
        [call.stride, call.stride],
        [1, 1],
        1,
        SEARCH or cudnn.benchmark,
        cudnn.deterministic,
        # never TF32, which means nothing in 16 bits; but it is part of torch's key of a plan, as the search is not
        SEARCH and call.x.dtype.itemsize < 4,
        out=call.y.permute(0, 3, 1, 2),
    )
    if call.bias is not None:
        call.y.add_(call.bias)


STRIP_BYTES = 4 << 20
"""How much of x one strip holds, in float32."""


def widens(call: Given) -> str | None:
    if call.padding >= call.weight.shape[2]:
        return "needs a row of x in every row of y, not padding alone"
    return None if call.x.dtype is torch.bfloat16 else f"widens bfloat16, not {call.x.dtype}"


@OP.implementation(
    "widened", lambda device, *dtypes: native.not_a_cpu(device), widens, lambda call: widening_bfloat16_is_slower()
)
def run_widened(call: Given) -> None:
    """Convolve in float32, one strip of rows after another, because a whole image in float32 would leave the caches."""
    stride, padding, width = call.stride, call.padding, call.x.shape[2] * call.x.shape[3]
    rows = max(1, STRIP_BYTES // (4 * width * stride))
    weight, bias = call.weight.float(), None if call.bias is None else call.bias.float()
    for image, out in zip(call.x, call.y, strict=True):
        for first in range(0, len(out), rows):
            y = out[first : first + rows]
            top, bottom = first * stride - padding, (first + len(y) - 1) * stride - padding + len(weight[0, 0])
            x = image[max(top, 0) : bottom].float()
            x = F.pad(x, (0, 0, 0, 0, max(-top, 0), max(bottom - len(image), 0)))
            y.copy_(F.conv2d(x.permute(2, 0, 1), weight, bias, stride, (0, padding)).permute(1, 2, 0))


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    y = F.conv2d(call.x.permute(0, 3, 1, 2), call.weight, call.bias, call.stride, call.padding)
    call.y.copy_(y.permute(0, 2, 3, 1))
