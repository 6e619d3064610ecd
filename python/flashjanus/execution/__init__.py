"""Binds plans to memory and fills their rows."""
