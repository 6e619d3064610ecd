"""Converts inputs that another process cannot access: open files, PIL images, tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from flashjanus.inputs.decoding import copy_of
from flashjanus.inputs.sources import from_file
from flashjanus.serving.messages import ChatRequest, Request
from flashjanus.serving.wire import DEEPEST


def portable(request: Request) -> Request:
    """Return the request with its images as encoded bytes, paths and URLs, or RGB arrays. Raises InputError."""
    return replace(request, messages=_shown(request.messages, 0)) if isinstance(request, ChatRequest) else request


def _shown(value: Any, depth: int) -> Any:
    if depth > DEEPEST:  # the wire refuses deeper nesting
        return value
    if isinstance(value, Mapping):
        return {name: _shown(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one, depth + 1) for one in value]
    if isinstance(value, Image.Image):
        return np.asarray(copy_of(value, "the image"))
    if isinstance(value, os.PathLike):
        return os.path.abspath(value)
    if type(value).__module__.partition(".")[0] == "torch":  # then the caller has imported torch
        from flashjanus.inputs.arrays import image_of

        return np.asarray(image_of(value))
    if hasattr(value, "read") and not isinstance(value, str | bytes):
        return np.asarray(from_file(value))
    return value
