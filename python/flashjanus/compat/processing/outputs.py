"""What the processor returns: fields by attribute, by [], by keys() and as ** of a call."""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from typing import Any

import torch


class DictOutput:
    """An object whose attributes are also items."""

    def keys(self) -> KeysView[str]:
        return vars(self).keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in vars(self)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


@dataclass
class VLChatProcessorOutput(DictOutput):
    """One conversation, not padded: ids (T,), pixels (n, 3, S, S) and for each image the number of its features."""

    sft_format: str
    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    num_und_image_tokens: torch.Tensor

    def __len__(self) -> int:
        """Tokens, those of images included."""
        return len(self.input_ids)


@dataclass
class BatchedVLChatProcessorOutput(DictOutput):
    """Conversations padded on the left.

    sft_format: their texts. input_ids, attention_mask (B, T) int64. images_seq_mask (B, T) bool: where image features
    go. pixel_values (B, n, 3, S, S). images_emb_mask (B, n, features + 1) bool: which features there are.
    """

    sft_format: list[str]
    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    attention_mask: torch.Tensor
    images_seq_mask: torch.Tensor
    images_emb_mask: torch.Tensor

    def to(self, device: torch.device | str | int, dtype: torch.dtype = torch.bfloat16) -> BatchedVLChatProcessorOutput:
        """The same on a device, pixels in `dtype`; changes this object and returns it, as the official code does."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                kind = dtype if name == "pixel_values" else value.dtype
                setattr(self, name, value.to(device=device, dtype=kind))
        return self
