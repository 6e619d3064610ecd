"""Times the model's stages and ops beside other implementations, and tells differences from noise."""
