"""Requests, and the scheduler that serves them all together."""
