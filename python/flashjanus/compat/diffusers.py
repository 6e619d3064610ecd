"""diffusers' names. In a script, replace `diffusers` or `diffusers.models` by `flashjanus.compat.diffusers`."""

from flashjanus.compat.vae.autoencoder import AutoencoderKL

__all__ = ["AutoencoderKL"]
