"""The VAE: diffusers' AutoencoderKL as a PyTorch module with its tensor names, encoder included."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _NormSilu(torch.autograd.Function):
    """silu(group_norm(x)) on channels-last memory, several times faster on a CPU than torch's backward.

    A row of the views below holds `fold` positions, so that the inner loops are long where channels are few.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        b, c, h, w = x.shape
        fold = math.gcd(h * w, max(1, 512 // c))
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w // fold, fold * c)
        sizes = (b, fold, groups, c // groups)
        count = h * w * (c // groups)
        mean = _column_sums(rows).view(sizes).sum((1, 3)) / count
        square = _column_sums(rows * rows).view(sizes).sum((1, 3)) / count
        rstd = torch.rsqrt((square - mean * mean).clamp_min(0) + eps)
        mean, rstd = (t.repeat_interleave(c // groups, 1) for t in (mean, rstd))
        scale = rstd * weight
        pre = torch.addcmul(_wide(bias - mean * scale, rows), rows, _wide(scale, rows))
        ctx.save_for_backward(rows, pre, mean, rstd, weight)
        ctx.groups, ctx.shape = groups, x.shape
        return F.silu(pre).view(b, h, w, c).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, pre, mean, rstd, weight = ctx.saved_tensors
        b, c, h, w = ctx.shape
        g, fold = ctx.groups, rows.shape[2] // c
        d = torch.ops.aten.silu_backward(gradient.permute(0, 2, 3, 1).reshape(rows.shape), pre)
        d_bias = _column_sums(d).view(b, fold, c).sum(1)
        d_weight = (_column_sums(d * rows).view(b, fold, c).sum(1) - d_bias * mean) * rstd

        def per_group(t: Tensor) -> Tensor:
            out: Tensor = (t.view(b, g, -1).sum(2) / (h * w * (c // g))).repeat_interleave(c // g, 1)
            return out

        slope = rstd * rstd * per_group(d_weight * weight)
        offset = slope * mean - rstd * per_group(d_bias * weight)
        dx = torch.addcmul(_wide(offset, rows), d, _wide(rstd * weight, rows)).addcmul_(rows, _wide(-slope, rows))
        return dx.view(b, h, w, c).permute(0, 3, 1, 2), d_weight.sum(0), d_bias.sum(0), None, None


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x)) for x (B, C, H, W)."""
    apply: Callable[..., Tensor] = _NormSilu.apply
    return apply(x, weight, bias, groups, eps)


def _column_sums(rows: Tensor) -> Tensor:
    """fp32 sums over the middle dimension of (b, r, n), by a matrix product (sum() is slow there in bf16)."""
    ones = torch.ones(1, rows.shape[1], dtype=rows.dtype, device=rows.device).expand(len(rows), 1, -1)
    return torch.bmm(ones, rows).float()


def _wide(t: Tensor, rows: Tensor) -> Tensor:
    """(b, c) repeated to the width of `rows` (b, r, fold * c), to be broadcast over r."""
    return t.to(rows.dtype).repeat(1, rows.shape[2] // t.shape[1])[:, None]


class NormSilu(nn.GroupNorm):
    """silu(group_norm(x))."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return norm_silu(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.silu(super().forward(x))


class Resnet(nn.Module):
    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = NormSilu(groups, into, 1e-6)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.norm2 = NormSilu(groups, out, 1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x))
        out: Tensor = self.conv_shortcut(x) + self.conv2(self.norm2(y))
        return out


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        scores = self.to_q(rows) @ self.to_k(rows).transpose(1, 2) / rows.shape[-1] ** 0.5
        out = self.to_out[0](scores.softmax(-1) @ self.to_v(rows))
        added: Tensor = x + out.transpose(1, 2).reshape(x.shape)
        return added


class Stage(nn.Module):
    """Some resnets and, where `resampler` is given, a convolution that halves or doubles the side."""

    def __init__(self, into: int, out: int, count: int, groups: int, resampler: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(out if i else into, out, groups) for i in range(count))
        self.resampler = resampler
        if resampler:
            down = resampler == "downsamplers"
            conv = nn.Conv2d(out, out, 3, stride=2 if down else 1, padding=0 if down else 1)
            setattr(self, resampler, nn.ModuleList([nn.ModuleDict({"conv": conv})]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.resampler is None:
            return x
        wider = self.resampler == "upsamplers"
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if wider else F.pad(x, (0, 1, 0, 1))
        resampled: Tensor = self.get_submodule(f"{self.resampler}.0.conv")(x)
        return resampled


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Encoder(nn.Module):
    def __init__(self, widths: list[int], layers: int, latent: int, groups: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, layers, groups, "downsamplers" if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = NormSilu(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        out: Tensor = self.conv_out(self.conv_norm_out(self.mid_block(x)))
        return out


class Decoder(nn.Module):
    def __init__(self, widths: list[int], layers: int, latent: int, groups: int) -> None:
        super().__init__()
        widths = widths[::-1]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, layers + 1, groups, "upsamplers" if i < last else None)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = NormSilu(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            x = stage(x)
        out: Tensor = self.conv_out(self.conv_norm_out(x))
        return out


class AutoencoderKL(nn.Module):
    """Pixels (B, 3, S, S) in [-1, 1] <-> latents (B, latent_channels, S / 2^(levels-1), S / 2^(levels-1))."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        sizes = list(config["block_out_channels"]), config["layers_per_block"], config["latent_channels"]
        self.encoder = Encoder(*sizes, config["norm_num_groups"])
        self.decoder = Decoder(*sizes, config["norm_num_groups"])
        self.quant_conv = nn.Conv2d(2 * sizes[2], 2 * sizes[2], 1)
        self.post_quant_conv = nn.Conv2d(sizes[2], sizes[2], 1)
        self.scaling_factor: float = config["scaling_factor"]

    def place(self, device: torch.device) -> AutoencoderKL:
        """Itself on `device`, channels-last, where convolutions are fastest."""
        to: Any = self.to  # its stub lacks memory_format
        to(device, memory_format=torch.channels_last)
        return self

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, not yet scaled."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of posterior samples (unscaled latents)."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out
