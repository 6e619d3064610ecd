"""Speed against quality: what a faster way to run a model costs, measured in one run."""
