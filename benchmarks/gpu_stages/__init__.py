"""What `benchmarks/gpu.py` does on a machine with a GPU, stage by stage."""
