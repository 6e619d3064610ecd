"""Interfaces of other programs, under their names, on this engine."""
