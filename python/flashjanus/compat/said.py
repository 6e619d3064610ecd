"""Warnings that point at the line of the caller, whatever lies between."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def warn(text: str, category: type[Warning]) -> None:
    """As warnings.warn, at the nearest frame that is neither ours nor torch's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
