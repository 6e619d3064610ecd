"""What a checkpoint's weights may be quantized to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """stored: the dtype of a checkpoint's linears. bits: of a weight as it is read when few rows are decoded.

    formats: of engine/formats, what a model keeps: the format that is stored, and others beside it, which are made of
    that when the model is loaded.
    """

    stored: str
    bits: int
    formats: tuple[str, ...]


QUANTIZATIONS = {
    "int8": Quantization("int8", 8, ("int8",)),
    "int4": Quantization("int8", 4, ("int8", "int4")),
    "fp8": Quantization("float8_e4m3fn", 8, ("e4m3",)),
}
"""By the name of what a checkpoint's own weights may be quantized to."""
