"""The cache of keys and values that callers of the language model pass from call to call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from typing_extensions import Self

from flashjanus.compat.outputs import CacheMisuseWarning
from flashjanus.compat.said import warn

Pair = tuple[torch.Tensor, torch.Tensor]


class Held(Protocol):
    """Keys and values in the engine's memory. Nobody else may write that memory while this object exists."""

    @property
    def length(self) -> int: ...

    def pairs(self) -> list[Pair]:
        """Copies of each layer's keys and values, (B, G, n, D)."""

    def cropped(self, length: int) -> Held: ...


class Cache:
    """Each layer's keys and values (B, G, n, D) in the order of the tokens, with the methods of transformers' caches.

    They stay in the engine's memory until they are accessed as tensors, or until a call on torch modules continues
    from them. A call that receives a cache adds its new tokens to it.
    """

    def __init__(self, pairs: Iterable[Pair] = (), held: Held | None = None, layers: int = 0) -> None:
        self._pairs: list[Pair] | None = None if held is not None else [(k, v) for k, v in pairs]
        self.held = held
        self._layers = layers

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[Sequence[torch.Tensor]] | None = None) -> Self:
        return cls((layer[0], layer[1]) for layer in past_key_values or ())

    @property
    def pairs(self) -> list[Pair]:
        """The keys and values as tensors. The first access copies them out of the engine's memory."""
        if self._pairs is None:
            assert self.held is not None
            self._pairs = self.held.pairs()
            self.held = None
        return self._pairs

    def part(self, length: int) -> Cache:
        """A cache of the first `length` tokens, which does not change when this cache grows."""
        if self.held is not None:
            return Cache(held=self.held.cropped(length), layers=self._layers)
        return Cache((k[:, :, :length], v[:, :, :length]) for k, v in self.pairs)

    def replace(self, pairs: Iterable[Pair]) -> None:
        """Replace the contents by tensors."""
        self._pairs, self.held = list(pairs), None

    def hold(self, held: Held, layers: int) -> None:
        """Replace the contents by keys and values in the engine's memory."""
        self.held, self._pairs, self._layers = held, None, layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens in the cache."""
        if self.held is not None:
            return self.held.length
        pairs = self.pairs
        return pairs[layer_idx][0].shape[2] if layer_idx < len(pairs) else 0

    def get_max_length(self) -> None:
        """None: the length is not limited."""

    get_max_cache_shape = get_max_length

    @property
    def seen_tokens(self) -> int:
        return self.get_seq_length()

    def crop(self, max_length: int) -> None:
        """Keep the first max_length tokens, or, if it is negative, drop the last -max_length tokens."""
        length = self.get_seq_length()
        kept = max(0, length + max_length) if max_length < 0 else min(max_length, length)
        if kept == length:
            return
        if self.held is not None:
            self.held = self.held.cropped(kept)
        else:
            self._pairs = [(k[:, :, :kept], v[:, :, :kept]) for k, v in self.pairs]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> Pair:
        """Append keys and values (B, G, N, D) to a layer, and return all of that layer's."""
        pairs = self.pairs
        if layer_idx == len(pairs):
            pairs.append((key_states, value_states))
        else:
            k, v = pairs[layer_idx]
            pairs[layer_idx] = torch.cat([k, key_states], 2), torch.cat([v, value_states], 2)
        return pairs[layer_idx]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace row i by row beam_idx[i]."""
        self._pairs = [(k.index_select(0, beam_idx), v.index_select(0, beam_idx)) for k, v in self.pairs]

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._pairs = [(k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in self.pairs]

    def to_legacy_cache(self) -> tuple[Pair, ...]:
        return tuple(self.pairs)

    @property
    def key_cache(self) -> list[torch.Tensor]:
        return [k for k, _ in self.pairs]

    @property
    def value_cache(self) -> list[torch.Tensor]:
        return [v for _, v in self.pairs]

    @property
    def layers(self) -> list[Layer]:
        """The layers as in transformers 5: objects with `keys` and `values`."""
        return [Layer(k, v) for k, v in self.pairs]

    def __len__(self) -> int:
        return self._layers if self._pairs is None else len(self._pairs)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, layer_idx: int) -> Pair:
        return self.pairs[layer_idx]

    def __iter__(self) -> Iterator[Pair]:
        warn(
            "A cache of keys and values is iterated as if it were a tuple of (key, value). If you feed slices of "
            "them back, feed only the new tokens after them, [t, z], with position_ids that continue after the "
            "prefix; cache.crop(length) and passing the cache itself do the same without copies.",
            CacheMisuseWarning,
        )
        return iter(list(self.pairs))

    def __deepcopy__(self, memo: object) -> Cache:
        source = self.held.pairs() if self.held is not None else [(k.clone(), v.clone()) for k, v in self.pairs]
        return Cache(source)


class Layer:
    """One layer of a cache."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


def foreign_pairs(cache: Any) -> list[Pair]:
    """Each layer's (key, value) from another library's cache, or from a sequence of such pairs."""
    layers = getattr(cache, "layers", None)
    if layers is not None:  # transformers 4.54 and later
        return [(layer.keys, layer.values) for layer in layers if getattr(layer, "keys", None) is not None]
    if hasattr(cache, "key_cache"):
        return [(k, v) for k, v in zip(cache.key_cache, cache.value_cache, strict=True) if isinstance(k, torch.Tensor)]
    return [(layer[0], layer[1]) for layer in cache]
