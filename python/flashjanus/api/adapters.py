"""LoRA adapters of a model. Requests name a loaded adapter, or it is merged into the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashjanus.checkpoint.adapters import AdapterFiles
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import InputError
from flashjanus.execution.adapters import RANK, SLOTS, Adapter
from flashjanus.execution.runner import Runner
from flashjanus.sampling import checks

MAX_SLOTS = 1024
MAX_NAME = 200
MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class LoadedAdapter:
    """Facts about a loaded adapter.

    source: where it was loaded from. rank: the largest rank among its projections. targets: the projections that it
    changes. merged: whether it is merged into the weights, so that every request uses it.
    """

    source: str
    rank: int
    targets: tuple[str, ...]
    merged: bool


class AdaptableModel(ProcessBound):
    """The part of a model that manages adapters."""

    runner: Runner

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """The loaded adapters by name."""
        held = self.runner.adapters
        return {
            name: LoadedAdapter(one.files.source, one.files.rank, one.files.targets, one is held.merged)
            for name, one in [*held.loaded.items()]
        }

    @entry
    def load_adapter(
        self, source: str | os.PathLike[str], name: str | None = None, *, revision: str | None = None
    ) -> None:
        """Load a LoRA adapter of the language model, in PEFT's format. From then on, requests may name it.

        source: a folder with adapter_config.json and adapter_model.safetensors, or a hub id at `revision`. The adapter
        may change any of the projections q, k, v, o, gate, up and down. name: defaults to the last part of source. The
        first adapter makes room for 4 adapters of its rank, but of rank 16 at least (see `reserve_adapters`). Adapters
        that fit in this room are loaded while requests run, without new plans. Raises CheckpointError if the files are
        not an adapter of this model, InputError if there is no room or the name is taken, and OutOfMemoryError.
        """
        if name is None:
            name = Path(os.fspath(source)).name if isinstance(source, (str, os.PathLike)) else ""
        self._load({name: AdapterFiles.read(source, self.runner.config.language, revision)})

    @entry
    def load_adapters(self, sources: Mapping[str, str | os.PathLike[str]]) -> None:
        """Load several adapters by name, all or none. If there is no room yet, it is made for all of them.

        Raises InputError, and the errors of `load_adapter`.
        """
        if not isinstance(sources, Mapping):
            raise InputError(f"adapters: expected folders or hub ids by name, got {sources!r:.80}")
        language = self.runner.config.language
        self._load({name: AdapterFiles.read(source, language) for name, source in sources.items()})

    @entry
    def combine_adapters(self, name: str, weights: Mapping[str, float]) -> None:
        """Load the weighted sum of loaded adapters as a new adapter, whose rank is the sum of their ranks.

        weights: maps their names to weights from -100 to 100. Raises the errors of `load_adapter`.
        """
        if not isinstance(weights, Mapping) or not weights:
            raise InputError(f"weights: expected numbers by the names of loaded adapters, got {weights!r:.80}")
        found = [
            (self._one(one), checks.number(f"weights[{one!r}]", weight, -MAX_WEIGHT, MAX_WEIGHT))
            for one, weight in weights.items()
        ]
        source = " + ".join(f"{weight:g} {one}" for one, weight in weights.items())
        self._load({name: AdapterFiles.combined(source, found)})

    @entry
    def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Running requests finish with it, and then its room is free. Raises InputError."""
        self.runner.adapters.unload(name)

    @entry
    def reserve_adapters(self, slots: int = SLOTS, rank: int = RANK) -> None:
        """Make room for `slots` adapters (1 to 1024) of ranks up to `rank`. Loaded adapters stay loaded.

        Room costs memory. An adapter costs time in the rows that name it, according to its own rank; see docs/lora.md.
        All plans are made again, while no request runs. Raises InputError and OutOfMemoryError.
        """
        checks.integer("slots", slots, 1, MAX_SLOTS)
        self.runner.reserve_adapters(slots, checks.integer("rank", rank, 1, 2**31 - 1))

    @entry
    def merge_adapter(self, name: str) -> None:
        """Add a loaded adapter to the weights while no request runs. Every request then uses it at no cost.

        A copy of the changed weights is kept for `unmerge_adapter`. Requests can still name other adapters. Raises
        InputError, also for quantized weights, whose rounding would destroy the adapter; name it in requests instead.
        """
        self.runner.merge_adapter(name)

    @entry
    def unmerge_adapter(self) -> None:
        """Restore the weights from before `merge_adapter`, bit for bit, while no request runs. Raises InputError."""
        self.runner.merge_adapter(None)

    def _one(self, name: object) -> AdapterFiles:
        loaded = self.runner.adapters.loaded
        if not isinstance(name, str) or name not in loaded:
            known = ", ".join(map(repr, loaded)) or "none"
            raise InputError(f"weights: expected names of loaded adapters ({known}), got {name!r:.80}")
        return loaded[name].files

    def _load(self, files: Mapping[str, AdapterFiles]) -> None:
        held, loaded = self.runner.adapters, list[str]()
        for name in files:
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise InputError(f"name: expected 1 to {MAX_NAME} printable characters, got {name!r:.80}")
        if not held.slots:
            self.runner.reserve_adapters(max(SLOTS, len(files)), max(RANK, *(one.rank for one in files.values())))
        try:
            for name, one in files.items():
                self.runner.load_adapter(one, name)
                loaded.append(name)
        except BaseException:
            for name in loaded:
                held.unload(name)
            raise

    def _adapters(self, named: object, rows: int, of: str = "row") -> list[Adapter | None]:
        """The adapter of each row, from one name for all rows or one per row. Raises InputError."""
        several = isinstance(named, Sequence) and not isinstance(named, str)
        names = list(named) if several else [named] * rows  # type: ignore[call-overload]
        if len(names) != rows:
            raise InputError(f"adapter: expected one name, or one for each {of} ({rows}), got {len(names)}")
        return [self.runner.adapters.one(name) for name in names]
