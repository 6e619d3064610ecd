"""Triton kernels. Importing this package imports no triton; each kernel's own module does."""

from __future__ import annotations

from importlib.util import find_spec


def unavailable() -> str | None:
    """None where triton is installed, else the reason in words."""
    if find_spec("triton") is None:
        return "triton is not installed: `pip install flashjanus[triton]`"
    return None
