"""int4: weights in 4 bits. w = q * scale, with q in -8..7 and one bfloat16 scale per output and group of 32 columns.

The values are stored in the order in which the kernel reads them, in panels of 16 outputs: u8 [N / 16][K / 32][4][64].
Byte [p][g][i][4 o + j] holds q + 8 of output 16 p + o: column 32 g + 8 i + j in its low half, and the fourth column
after that in its high half. The scales are [N / 16][K / 32][16]. Kernels quantize their inputs in the same groups of
columns.
"""

from __future__ import annotations

import torch

from ..specs import Shape, TensorSpec
from .base import ROWS_AT_ONCE, Format, Packed, register
from .rows import INT8

PANEL = 16
GROUP = 32
"""Columns of a group: kInt4Group of csrc/cpu/int4_linear.h."""
REGISTERS = 4
"""Blocks of 64 bytes in one group of a panel."""
Q_MIN, Q_MAX = -8, 7


class Nibbles(Format):
    name = "int4"
    suffix = ".int4"
    group = GROUP
    decodes = True

    @property
    def stored(self) -> Format:
        return INT8

    def refuses(self, n: int, k: int, dtype: torch.dtype) -> str | None:
        return f"4-bit weights need multiples of {PANEL} x {GROUP}, got {n} x {k}" if n % PANEL or k % GROUP else None

    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        panels, groups = n // PANEL, k // GROUP
        packed = TensorSpec((panels, groups, REGISTERS, 64), torch.uint8)
        return packed, TensorSpec((panels, groups, PANEL), torch.bfloat16)

    def size(self, values: Shape) -> Shape:
        return values[0] * PANEL, values[1] * GROUP

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        """The value of largest magnitude in a group becomes -8, so that all 16 levels are used."""
        found = []
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            found.append(_quantize(weight[rows] if scale is None else weight[rows] * scale[rows, None]))
        return torch.cat([values for values, _ in found]), torch.cat([scales for _, scales in found])

    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        assert scale is not None
        panels, groups = scale.shape[:2]
        q = unpacked(values).view(panels, PANEL, groups, GROUP)
        wide: torch.Tensor = q * scale.transpose(1, 2)[..., None].float()
        return wide.view(panels * PANEL, groups * GROUP).to(dtype), None


INT4 = Nibbles()
register(INT4)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = weight.shape
    groups = weight.float().view(n, k // GROUP, GROUP)
    low, high = groups.aminmax(dim=2, keepdim=True)
    scale = (torch.where(high > -low, high, low) / Q_MIN).bfloat16()
    step = scale.float()
    q = (groups / torch.where(step == 0, 1.0, step)).round_().clamp_(Q_MIN, Q_MAX).to(torch.int8)
    return packed(q.view(n, k)), scale.view(n // PANEL, PANEL, -1).transpose(1, 2).contiguous()


def packed(q: torch.Tensor) -> torch.Tensor:
    """q (N, K) in -8..7, as bytes in the kernel's order."""
    n, k = q.shape
    halves = (q + 8).to(torch.uint8).view(n // PANEL, PANEL, k // GROUP, REGISTERS, 2, 4)
    low, high = halves.permute(4, 0, 2, 3, 1, 5).reshape(2, n // PANEL, k // GROUP, REGISTERS, 64)
    return torch.bitwise_or(low, high << 4)


def unpacked(values: torch.Tensor) -> torch.Tensor:
    """q (N, K) in int8, from bytes in the kernel's order."""
    panels, groups = values.shape[:2]
    halves = torch.stack([values & 15, values >> 4]).view(2, panels, groups, REGISTERS, PANEL, 4)
    return halves.permute(1, 4, 2, 3, 0, 5).reshape(panels * PANEL, groups * GROUP).to(torch.int8) - 8
