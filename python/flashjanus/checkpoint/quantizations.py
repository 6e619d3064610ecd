"""The formats that a checkpoint's weights may be quantized to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """stored: the dtype of a checkpoint's linears. bits: bits read per weight when few rows are decoded.

    formats: those of engine/formats that a model keeps: the stored one, and others made from it when the model is
    loaded.
    """

    stored: str
    bits: int
    formats: tuple[str, ...]


QUANTIZATIONS = {
    "int8": Quantization("int8", 8, ("int8",)),
    "int4": Quantization("int8", 4, ("int8", "int4")),
    "fp8": Quantization("float8_e4m3fn", 8, ("e4m3",)),
}
"""Quantizations by the name that a checkpoint's config gives them."""
