"""What a checkpoint's weights may be quantized to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """stored: the dtype of a checkpoint's linears. bits: of a weight as it is read when few rows are decoded."""

    stored: str
    bits: int


QUANTIZATIONS = {
    "int8": Quantization("int8", 8),
    "int4": Quantization("int8", 4),
    "fp8": Quantization("float8_e4m3fn", 8),
}
"""By the name of what a checkpoint's own weights may be quantized to; 4 bits are made from 8 when they are loaded."""
