"""The output of an encoder: a normal distribution for each latent value."""

from __future__ import annotations

import torch


class DiagonalGaussianDistribution:
    """Normal distributions whose mean and logvar are the halves of `parameters` (B, 2c, H, W) along dim 1."""

    def __init__(self, parameters: torch.Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """mean + std * noise. The noise is drawn on the generator's device, so that a seed gives the same on every
        device."""
        place = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=place, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> torch.Tensor:
        """The mean, which is the likeliest value."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """The KL divergence (B,), in nats, from another distribution, or from the standard normal one if None."""
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            moved = (self.mean - other.mean).square() / other.var
            terms = moved + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))
