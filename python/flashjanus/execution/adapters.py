"""Slots for low-rank adapters beside a model's weights, which rows name by number, and weights with an adapter merged
in.

A plan that is made with slots serves any adapter that fits them: loading one writes its factors into a slot.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import RLock
from typing import Protocol
from weakref import WeakSet

import torch

from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from flashjanus.checkpoint.adapters import AdapterFiles, Factors, Linear, linears
from flashjanus.engine.formats import Weight
from flashjanus.engine.ops.low_rank import MAX_RANK
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.executor import Executor, allocate
from flashjanus.engine.specs import TensorSpec
from flashjanus.errors import InputError
from flashjanus.model import Policy

SLOTS, RANK = 4, 16
"""The slots made when the first adapter is loaded if none are reserved; more or larger adapters get more."""
_NUMBERS = count(1)
_LOCK = RLock()
"""Guards the adapters of all models. A forked child finds it unlocked, and what it guards consistent."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter. number: unique among all adapters that a process loads, whatever their names."""

    name: str
    files: AdapterFiles
    slot: int
    number: int


class Use(Protocol):
    """A request that may use adapters."""

    @property
    def ended(self) -> bool: ...

    @property
    def adapters(self) -> frozenset[Adapter]: ...


class Adapters(ProcessBound):
    """The adapters of one model, by name.

    weights: the model's own weights, to which slots are added and into which an adapter may be merged. slots, rank: the
    number and the rank of the slots, 0 before there are any. A slot is free if neither a loaded adapter nor a request
    in progress uses it.
    """

    def __init__(self, config: JanusFlowConfig, policy: Policy, weights: MutableMapping[str, torch.Tensor]) -> None:
        self._config, self._policy, self._weights = config.language, policy, weights
        self._linears = linears(config.language)
        self._targets = {target.name: target for target in weight_layout(config)}
        self._uses: WeakSet[Use] = WeakSet()
        self._original: dict[str, torch.Tensor] = {}
        self.slots = self.rank = 0
        self.loaded: dict[str, Adapter] = {}
        self.merged: Adapter | None = None

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Specs of the slots' tensors, by the name of their linear; empty if there are no slots."""
        return self.specs_of(self.slots, self.rank) if self.slots else {}

    def specs_of(self, slots: int, rank: int) -> dict[str, TensorSpec]:
        """Specs for a number of slots of a rank."""
        specs: dict[str, TensorSpec] = {}
        for name, linear in self._all():
            parts, dtype = len(linear.rows), self._policy.matrix
            specs |= {
                f"{name}.lora.a": TensorSpec((slots, linear.columns, parts * rank), dtype),
                f"{name}.lora.b": TensorSpec((slots, rank, sum(linear.rows.values())), dtype),
                f"{name}.lora.ranks": TensorSpec((slots, parts), torch.int32),
                f"{name}.lora.scale": TensorSpec((slots, parts), torch.float32),
            }
        return specs

    def use(self, request: Use) -> None:
        """Count a request until it has ended. Raises InputError if one of its adapters is no longer loaded."""
        with _LOCK:
            for adapter in request.adapters:
                self.check(adapter)
            self._uses.add(request)

    def check(self, adapter: Adapter) -> None:
        """Raises InputError unless requests may name this adapter."""
        if self.loaded.get(adapter.name) is not adapter:
            raise InputError(f"adapter: expected a loaded adapter, got {adapter.name!r}, which was unloaded")
        if self.merged is adapter:
            raise InputError(
                f"adapter: {adapter.name!r} is merged into the weights, and every request has it; leave adapter out, "
                "or call unmerge_adapter() first"
            )

    def one(self, name: object, argument: str = "adapter") -> Adapter | None:
        """The loaded adapter of that name; None for None. Raises InputError."""
        if name is None:
            return None
        with _LOCK:
            adapter = self.loaded.get(name) if isinstance(name, str) else None
            if adapter is None:
                known = ", ".join(map(repr, self.loaded)) or "none"
                raise InputError(f"{argument}: expected the name of a loaded adapter ({known}), got {name!r:.80}")
            self.check(adapter)
            return adapter

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """A block in which no request is in progress and none can begin. what: the reason, as the end of an error
        message. Raises InputError if a request is in progress."""
        with _LOCK:
            live = len(self._live())
            if live:
                raise InputError(f"expected no request in progress, got {live}: {what}")
            yield

    def _live(self) -> list[Use]:
        with _LOCK:
            return [use for use in self._uses if not use.ended]

    def make_room(self, slots: int, rank: int) -> None:
        """Make slots for ranks up to `rank` and write the loaded adapters into them. Call this within `alone`; plans
        have to be made anew. Raises InputError."""
        if rank > MAX_RANK:
            raise InputError(f"rank: expected at most {MAX_RANK}, got {rank}")
        largest = max((adapter.files.rank for adapter in self.loaded.values()), default=1)
        if slots < len(self.loaded) or rank < largest:
            raise InputError(
                f"expected room for the {len(self.loaded)} loaded adapters, which have ranks up to {largest}, got "
                f"{slots} slots of rank {rank}; unload some first"
            )
        device = self._weights["llm.rope"].device
        with torch.inference_mode(False):
            made = {name: allocate(spec, device) for name, spec in self.specs_of(slots, rank).items()}
        self._weights.update(made)
        self.slots, self.rank = slots, rank
        held, self.loaded = self.loaded, {}
        for slot, adapter in enumerate(held.values()):
            moved = Adapter(adapter.name, adapter.files, slot, adapter.number)
            self._write(moved)
            self.loaded[adapter.name] = moved
            self.merged = moved if self.merged is adapter else self.merged

    def load(self, files: AdapterFiles, name: str) -> Adapter:
        """Write an adapter into a free slot. Raises InputError."""
        with _LOCK:
            if name in self.loaded:
                raise InputError(
                    f"name: expected one that no loaded adapter has, got {name!r}; unload that adapter first"
                )
            if files.rank > self.rank:
                raise InputError(
                    f"{files.source}: expected an adapter of rank at most {self.rank}, for which there is room, got "
                    f"rank {files.rank}; call reserve_adapters(slots={self.slots}, rank={files.rank}) first"
                )
            named = {adapter.slot for adapter in self.loaded.values()}
            waiting = {adapter.slot for use in self._live() for adapter in use.adapters} - named
            free = [slot for slot in range(self.slots) if slot not in named | waiting]
            if not free:
                unloaded = f", and {len(waiting)} unloaded ones that running requests still use" if waiting else ""
                raise InputError(
                    f"expected a free one of {self.slots} slots, got none; loaded: "
                    f"{', '.join(self.loaded) or 'none'}{unloaded}; unload one, or call "
                    f"reserve_adapters(slots={self.slots + 1}, rank={self.rank}) first"
                )
            adapter = Adapter(name, files, free[0], next(_NUMBERS))
            self._write(adapter)
            self.loaded[name] = adapter
            return adapter

    def unload(self, name: str) -> None:
        """Unload an adapter. New requests cannot name it; requests in progress keep it until they end. Raises
        InputError."""
        with _LOCK:
            if name not in self.loaded:
                known = ", ".join(map(repr, self.loaded)) or "none"
                raise InputError(f"name: expected the name of a loaded adapter ({known}), got {name!r:.80}")
            if self.merged is self.loaded[name]:
                raise InputError(f"name: {name!r} is merged into the weights; call unmerge_adapter() first")
            del self.loaded[name]

    def merge(self, name: str) -> None:
        """Add an adapter to the weights, keeping a copy of the original ones. Call this within `alone`. Raises
        InputError."""
        adapter = self.one(name, "name")
        assert adapter is not None
        if self.merged is not None:
            raise InputError(
                f"expected weights without a merged adapter, got {self.merged.name!r} merged; call unmerge_adapter() "
                "first"
            )
        if self._policy.quantization is not None:
            raise InputError(
                f"expected float weights, got {self._policy.quantization}, in which a merged adapter would be "
                "rounded away: name it in requests (adapter=), which works on quantized weights, or merge it into the "
                "checkpoint before you quantize it"
            )
        try:
            for linear_name, linear in self._all():
                for weight, total in self._sum(linear_name, linear, adapter.files).items():
                    self._original[weight] = self._weights[weight].clone()
                    self._weights[weight].copy_(total)
        except BaseException:
            self._restore()
            raise
        self.merged = adapter

    def unmerge(self) -> None:
        """Restore the original weights, bit for bit. Call this within `alone`. Raises InputError."""
        if self.merged is None:
            raise InputError("expected weights with a merged adapter, got the weights as they were loaded")
        self._restore()
        self.merged = None

    def identity(self, adapter: Adapter | None) -> tuple[int, int] | None:
        """What identifies a row's prefix in addition to its tokens; None without any adapter."""
        if adapter is None and self.merged is None:
            return None
        return (0 if self.merged is None else self.merged.number), (0 if adapter is None else adapter.number)

    def named(self, names: Sequence[Hashable], adapter: Adapter | None) -> tuple[Hashable, ...]:
        """Names of a row's tokens. `names` are those without an adapter; with one, each name includes the adapter's
        identity."""
        of = self.identity(adapter)
        return tuple(names) if of is None else tuple((of, name) for name in names)

    def _restore(self) -> None:
        for name, weight in self._original.items():
            self._weights[name].copy_(weight)
        self._original.clear()

    def _all(self) -> list[tuple[str, Linear]]:
        layers = range(self._config.num_hidden_layers)
        return [(f"llm.{i}.{name}", linear) for i in layers for name, linear in self._linears.items()]

    def _write(self, adapter: Adapter) -> None:
        slot, rank = adapter.slot, self.rank
        for name, linear in self._all():
            a, b, ranks, scale = (self._weights[f"{name}.lora.{part}"][slot] for part in ("a", "b", "ranks", "scale"))
            for tensor in (a, b, ranks, scale):
                tensor.zero_()
            for part, factors, (first, last) in _parts(name, linear, adapter.files):
                a[:, part * rank : part * rank + factors.rank].copy_(factors.down.t())
                b[: factors.rank, first:last].copy_(factors.up.t())
                ranks[part], scale[part] = factors.rank, factors.scale

    def _sum(self, name: str, linear: Linear, files: AdapterFiles) -> Mapping[str, torch.Tensor]:
        """The tensors of a linear's weight with an adapter added, by name; empty if the adapter adds nothing."""
        parts = list(_parts(name, linear, files))
        if not parts:
            return {}
        target, weight = self._targets[name], self._weights[name]
        kept = self._policy.kept(target)
        assert isinstance(kept, Weight)
        total = kept.by_rows({name: weight})[name].to(torch.float32, copy=True)
        for _, factors, (first, last) in parts:
            total[first:last] += factors.product().to(total.device)
        return self._policy.pack(target, total.to(weight.dtype))


def _parts(name: str, linear: Linear, files: AdapterFiles) -> Iterator[tuple[int, Factors, tuple[int, int]]]:
    """The projections of a layer's linear that an adapter changes: number, factors, first and last row."""
    layer, first = int(name.split(".")[1]), 0
    for part, (projection, rows) in enumerate(linear.rows.items()):
        factors = files.factors.get((layer, projection))
        if factors is not None:
            yield part, factors, (first, first + rows)
        first += rows


def write(executor: Executor, rows: Iterable[int], adapter: Adapter | None) -> None:
    """Write the adapter of these rows into the executor's inputs on the host, if the plan has slots."""
    if "adapter" in executor.host:
        executor.host["adapter"][list(rows)] = 0 if adapter is None else adapter.slot + 1
