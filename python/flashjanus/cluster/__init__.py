"""Batches from files, and Ray Serve and Ray Data around the same engine."""
