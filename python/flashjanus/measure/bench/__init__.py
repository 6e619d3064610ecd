"""Times of the model's stages and of its ops, beside those of other implementations, and what of them is noise."""
