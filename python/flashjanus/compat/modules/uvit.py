"""The generation encoder and decoder: ConvNeXt blocks modulated by the time. NCHW between the modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from flashjanus.checkpoint import GenDecoderConfig, GenEncoderConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) in float32, cast to x's dtype, times weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(x.dtype)


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1000) -> (B, D): cosines and sines at C / 2 frequencies, then two linear layers."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, hidden, bias)
        self.linear_2 = nn.Linear(hidden, hidden, bias)

    def forward(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angles = t.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(dtype)
        out: torch.Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return out


class GlobalResponseNorm(nn.Module):
    """x (B, H, W, C) -> bias + (weight * n + 1) * x, where n is a channel's norm over the image divided by the mean of
    these norms over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scaled: torch.Tensor = (self.weight * (norms / (norms.mean(-1, keepdim=True) + 1e-6)) + 1) * x
        return self.bias + scaled


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=bias)
        self.norm = RMSNorm(channels, eps)
        self.channelwise_linear_1 = nn.Linear(channels, 4 * channels, bias)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = nn.Linear(4 * channels, channels, bias)
        self.cond_embeds_mapper = nn.Linear(hidden, 2 * channels, bias)

    def forward(self, x: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.channelwise_linear_2(self.channelwise_norm(F.gelu(self.channelwise_linear_1(y))))
        scale, shift = self.cond_embeds_mapper(F.silu(t_emb))[:, :, None, None].chunk(2, 1)
        out: torch.Tensor = (x + y.permute(0, 3, 1, 2)) * (1 + scale) + shift
        return out


class MidBlock(nn.Module):
    def __init__(self, blocks: int, channels: int, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ConvNextBlock(channels, hidden, eps, bias) for _ in range(blocks))

    def forward(self, x: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
        for block in self.res_blocks:
            x = block(x, t_emb)
        return x


class LatentEncoder(nn.Module):
    """Latents (B, c, H, W) at times t (B,) -> x (B, C, H / stride, W / stride), t_emb (B, D)."""

    def __init__(self, config: GenEncoderConfig) -> None:
        super().__init__()
        c = config
        self.time_embed = TimeEmbedding(c.channels, c.hidden_size, c.use_bias)
        self.in_conv = nn.Conv2d(c.input_channels, c.channels, c.kernel_size, c.stride, c.padding)
        sizes = (c.channels, c.hidden_size, c.norm_eps, c.use_bias)
        self.mid_block = MidBlock(c.layers, *sizes) if c.use_mid_block else None

    def forward(self, z: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t_emb = self.time_embed(timesteps.flatten(), z.dtype)
        x = self.in_conv(z)
        return x if self.mid_block is None else self.mid_block(x, t_emb), t_emb


class Unpatchify(nn.Module):
    """(B, C, h, w) -> (B, out, 2 h, 2 w)."""

    def __init__(self, channels: int, out: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, eps)
        self.unpatch_conv = nn.Conv2d(channels, 4 * out, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.unpatch_conv(x), 2)


class VelocityDecoder(nn.Module):
    """Aligned hidden states h (B, C, h, w), concatenated with the encoder's x -> velocity (B, c, H, W)."""

    def __init__(self, config: GenDecoderConfig) -> None:
        super().__init__()
        c = config
        sizes = (c.width, c.hidden_size, c.norm_eps, c.use_bias)
        self.mid_block = MidBlock(c.layers, *sizes) if c.use_mid_block else None
        self.out_convs = nn.ModuleList(
            Unpatchify(
                c.channels if j else c.width,
                c.out_channels if j == c.upsamples - 1 else c.channels,
                c.norm_eps,
                c.use_bias,
            )
            for j in range(c.upsamples)
        )
        self.input_norm = RMSNorm(c.in_channels, c.norm_eps)

    def forward(self, h: torch.Tensor, skip: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.input_norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), skip], 1)
        if self.mid_block is not None:
            x = self.mid_block(x, t_emb)
        for out_conv in self.out_convs:
            x = out_conv(x)
        return x
