"""The processor's outputs, whose fields can be read by attribute or by key, and passed on with **."""

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
    """One conversation without padding: ids (T,), pixels (n, 3, S, S), and the number of features of each image."""

    sft_format: str
    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    num_und_image_tokens: torch.Tensor

    def __len__(self) -> int:
        """The number of tokens, including those of images."""
        return len(self.input_ids)


@dataclass
class BatchedVLChatProcessorOutput(DictOutput):
    """A batch of conversations, padded on the left.

    sft_format: the texts. input_ids, attention_mask: (B, T), int64. images_seq_mask: (B, T), bool, true where an
    image's features are inserted. pixel_values: (B, n, 3, S, S). images_emb_mask: (B, n, features + 1), bool, true for
    the features that exist.
    """

    sft_format: list[str]
    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    attention_mask: torch.Tensor
    images_seq_mask: torch.Tensor
    images_emb_mask: torch.Tensor

    def to(self, device: torch.device | str | int, dtype: torch.dtype = torch.bfloat16) -> BatchedVLChatProcessorOutput:
        """Move the tensors to a device, and the pixels to `dtype`. Like the official code, this changes and returns the
        same object."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                kind = dtype if name == "pixel_values" else value.dtype
                setattr(self, name, value.to(device=device, dtype=kind))
        return self
