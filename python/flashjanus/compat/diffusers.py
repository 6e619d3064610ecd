"""diffusers' names: change `diffusers` or `diffusers.models` to `flashjanus.compat.diffusers`, and no more."""

from flashjanus.compat.vae.autoencoder import AutoencoderKL

__all__ = ["AutoencoderKL"]
