"""What an encoder says of its latents: a normal distribution for each value."""

from __future__ import annotations

import torch


class DiagonalGaussianDistribution:
    """mean and logvar, halves of `parameters` (B, 2c, H, W) along dim 1; std and var of them."""

    def __init__(self, parameters: torch.Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """mean + std * noise; a generator of another device draws there, so that a seed gives the same everywhere."""
        place = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=place, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> torch.Tensor:
        """The mean, which is the likeliest."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """KL divergence (B,) from another distribution, from the standard normal one if None; in nats."""
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            moved = (self.mean - other.mean).square() / other.var
            terms = moved + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))
