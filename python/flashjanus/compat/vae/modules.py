"""An AutoencoderKL in plain torch modules, with diffusers' names. Tensors are NCHW."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where a 1x1 convolution is applied to the first x if the widths
    differ."""

    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, into, EPS)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(into, out, 1) if into != out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: torch.Tensor = self.conv2(F.silu(self.norm2(h)))
        return out + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Attention of one head over all positions, added to its input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        h = F.scaled_dot_product_attention(self.to_q(h)[:, None], self.to_k(h)[:, None], self.to_v(h)[:, None])[:, 0]
        out: torch.Tensor = self.to_out[0](h)
        return x + out.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """A resnet block, an attention (optional), and a resnet block."""

    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)] if attention else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: torch.Tensor = self.resnets[1](x)
        return out


class Downsample(nn.Module):
    """Halves the sides by a convolution that pads only at the right and the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles the sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DownBlock(nn.Module):
    def __init__(self, into: int, out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(out if i else into, out, groups) for i in range(layers))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (*self.resnets, *self.downsamplers):
            x = part(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, into: int, out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(out if i else into, out, groups) for i in range(layers))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (*self.resnets, *self.upsamplers):
            x = part(x)
        return x


class Encoder(nn.Module):
    """Images (B, c, H, W) -> (B, out, H / 2^(n-1), W / 2^(n-1)) for n widths."""

    def __init__(self, into: int, out: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(into, widths[0], 3, padding=1)
        ends = zip((widths[0], *widths), widths, range(len(widths)), strict=False)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, layers, groups, i == len(widths) - 1) for before, width, i in ends
        )
        self.mid_block = MidBlock(widths[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: torch.Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """Latents (B, c, H, W) -> images (B, out, H 2^(n-1), W 2^(n-1)) for n widths, from the image to the latents."""

    def __init__(self, into: int, out: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool) -> None:
        super().__init__()
        backwards = widths[::-1]
        self.conv_in = nn.Conv2d(into, backwards[0], 3, padding=1)
        self.mid_block = MidBlock(backwards[0], groups, attention)
        ends = zip((backwards[0], *backwards), backwards, range(len(widths)), strict=False)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, layers + 1, groups, i == len(widths) - 1) for before, width, i in ends
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        out: torch.Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out
