"""Weights in 4 bits: w = q * scale, q -8..7, with a bfloat16 scale for each group of 32 columns of an output.

Kept as the kernel reads them, in panels of 16 outputs: a u8 [N / 16][K / 32][4][64] whose byte [p][g][i][4 o + j] holds
q + 8 of output 16 p + o, in its low half of column 32 g + 8 i + j and in its high half of the fourth one behind that;
and the scales as [N / 16][K / 32][16].
"""

from __future__ import annotations

import torch

PANEL = 16
GROUP = 32
"""kInt4Group of csrc/cpu/amx/int4_linear.h."""
REGISTERS = 4
"""Of 64 bytes, in a group of a panel."""
Q_MIN, Q_MAX = -8, 7
ROWS_AT_ONCE = 256
"""Quantized together: as many as the caches hold in float32."""


def shapes(n: int, k: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Of a weight (n, k) in 4 bits, and of its scales."""
    panels, groups = n // PANEL, k // GROUP
    return (panels, groups, REGISTERS, 64), (panels, groups, PANEL)


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes and scales of weight (N, K). The value of largest magnitude in a group is its -8, so that all 16 serve."""
    parts = [_quantize(rows) for rows in torch.split(weight, ROWS_AT_ONCE)]
    return torch.cat([packed for packed, _ in parts]), torch.cat([scale for _, scale in parts])


def of_int8(q: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes and scales of the weight (N, K) that q (N, K) int8 and scale (N,) stand for: as `quantize` of q * scale."""
    rows = zip(torch.split(q, ROWS_AT_ONCE), torch.split(scale, ROWS_AT_ONCE), strict=True)
    parts = [_quantize(part * steps[:, None]) for part, steps in rows]
    return torch.cat([packed for packed, _ in parts]), torch.cat([scales for _, scales in parts])


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n, k = weight.shape
    groups = weight.float().view(n, k // GROUP, GROUP)
    low, high = groups.aminmax(dim=2, keepdim=True)
    scale = (torch.where(high > -low, high, low) / Q_MIN).bfloat16()
    step = scale.float()
    q = (groups / torch.where(step == 0, 1.0, step)).round_().clamp_(Q_MIN, Q_MAX).to(torch.int8)
    return pack(q.view(n, k)), scale.view(n // PANEL, PANEL, -1).transpose(1, 2).contiguous()


def dequantize(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weight (N, K) that bytes and scales stand for, in float32."""
    panels, groups = scale.shape[:2]
    q = unpack(packed).view(panels, PANEL, groups, GROUP)
    wide: torch.Tensor = q * scale.transpose(1, 2)[..., None].float()
    return wide.view(panels * PANEL, groups * GROUP)


def pack(q: torch.Tensor) -> torch.Tensor:
    """q (N, K) in -8..7 as bytes in the kernel's order."""
    n, k = q.shape
    halves = (q + 8).to(torch.uint8).view(n // PANEL, PANEL, k // GROUP, REGISTERS, 2, 4)
    low, high = halves.permute(4, 0, 2, 3, 1, 5).reshape(2, *shapes(n, k)[0])
    return torch.bitwise_or(low, high << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The q (N, K), in int8, that `packed` holds."""
    panels, groups = packed.shape[:2]
    halves = torch.stack([packed & 15, packed >> 4]).view(2, panels, groups, REGISTERS, PANEL, 4)
    return halves.permute(1, 4, 2, 3, 0, 5).reshape(panels * PANEL, groups * GROUP).to(torch.int8) - 8
