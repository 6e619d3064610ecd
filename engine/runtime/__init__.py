"""Executors of a plan, and the door to the native kernels."""
