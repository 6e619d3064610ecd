"""Measures speed against quality: what each faster way to run a model costs in quality, in one run."""
