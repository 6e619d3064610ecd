"""Low-rank adapters of a model: loaded beside its weights and named by requests, or merged into them."""

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
    """source: where it came from. rank: the largest among its projections. targets: those that it changes.
    merged: it is in the weights, so that every request has it."""

    source: str
    rank: int
    targets: tuple[str, ...]
    merged: bool


class AdaptableModel(ProcessBound):
    """The part of a model that has adapters."""

    runner: Runner

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """What is loaded, by name."""
        held = self.runner.adapters
        return {
            name: LoadedAdapter(one.files.source, one.files.rank, one.files.targets, one is held.merged)
            for name, one in [*held.loaded.items()]
        }

    @entry
    def load_adapter(
        self, source: str | os.PathLike[str], name: str | None = None, *, revision: str | None = None
    ) -> None:
        """Load a LoRA adapter of the language model, as PEFT saves it: requests may name it from now on.

        source: a folder with adapter_config.json and adapter_model.safetensors, or a hub id at `revision`; its
        projections are any of q, k, v, o, gate, up and down. name: default, the last part of source. The first adapter
        makes room for 4 of its rank, or of 16 where that is more (see `reserve_adapters`); those that fit in it are
        loaded while requests run, and no plan is made anew for them. Raises CheckpointError where the files are no
        adapter of this model; InputError where there is no room, or another has the name; OutOfMemoryError.
        """
        if name is None:
            name = Path(os.fspath(source)).name if isinstance(source, (str, os.PathLike)) else ""
        self._load({name: AdapterFiles.read(source, self.runner.config.language, revision)})

    @entry
    def load_adapters(self, sources: Mapping[str, str | os.PathLike[str]]) -> None:
        """As `load_adapter`, several by their names, with room for all of them where there is none yet; all or none."""
        if not isinstance(sources, Mapping):
            raise InputError(f"adapters: expected folders or hub ids by name, got {sources!r:.80}")
        language = self.runner.config.language
        self._load({name: AdapterFiles.read(source, language) for name, source in sources.items()})

    @entry
    def combine_adapters(self, name: str, weights: Mapping[str, float]) -> None:
        """Load the weighted sum of loaded adapters as one more, whose rank is the sum of theirs.

        weights: by their names, -100 to 100. Raises as `load_adapter`.
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
        """No further request may name it; those under way end with it, and then its room is free. Raises InputError."""
        self.runner.adapters.unload(name)

    @entry
    def reserve_adapters(self, slots: int = SLOTS, rank: int = RANK) -> None:
        """Make room for so many adapters of ranks up to `rank`, 1 to 1024, at once; what is loaded stays.

        Room costs memory, and an adapter time for the rows that name it, by its own rank: see docs/lora.md. It is part
        of every plan: plans are made anew, while no request runs. Raises InputError, OutOfMemoryError.
        """
        checks.integer("slots", slots, 1, MAX_SLOTS)
        self.runner.reserve_adapters(slots, checks.integer("rank", rank, 1, 2**31 - 1))

    @entry
    def merge_adapter(self, name: str) -> None:
        """Add a loaded adapter to the weights, so that every request has it at no cost, while no request runs.

        Keeps a copy of the weights that it changes for `unmerge_adapter`. Others can still be named. Raises InputError;
        on quantized weights too, which would round it away: there an adapter is named.
        """
        self.runner.merge_adapter(name)

    @entry
    def unmerge_adapter(self) -> None:
        """The weights as they were before `merge_adapter`, bit for bit, while no request runs. Raises InputError."""
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
        """The adapter of each row, from one name for all or from one for each. Raises InputError."""
        several = isinstance(named, Sequence) and not isinstance(named, str)
        names = list(named) if several else [named] * rows  # type: ignore[call-overload]
        if len(names) != rows:
            raise InputError(f"adapter: expected one name, or one for each {of} ({rows}), got {len(names)}")
        return [self.runner.adapters.one(name) for name in names]
