"""Executors of a plan, and what they need of the process that they run in."""
