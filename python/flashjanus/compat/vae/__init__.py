"""diffusers' AutoencoderKL: torch modules of its names and structure, decoding on the engine."""
