"""diffusers' AutoencoderKL: torch modules with its names and structure, whose decoder runs on the engine."""
