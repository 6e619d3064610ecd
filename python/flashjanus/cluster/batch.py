"""Runs a batch from a file into a folder; only missing items are made, and each item is written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashjanus.cluster.folder import Folder
from flashjanus.cluster.items import Item
from flashjanus.cluster.rows import Fault, Row, Usual, read
from flashjanus.errors import InputError

NAMED = 10
"""The most lines that an error names."""
Results = Iterator[tuple[Row, Item | Fault]]


@dataclass
class Batch:
    """A file's rows and their outcomes. faults: the rows that failed in this run, by line.

    pending: rows that have no item yet. written: the number of items that this run has written.
    """

    file: Path
    usual: Usual
    folder: Folder
    rows: list[Row] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)
    pending: list[Row] = field(default_factory=list)
    written: int = 0

    @classmethod
    def read(cls, file: Path, usual: Usual, folder: Folder, strict: bool) -> Batch:
        """Read the rows of a file. strict: a bad line ends the run before any work. Raises InputError."""
        batch = cls(file, usual, folder)
        for one in read(file, usual):
            if isinstance(one, Row):
                batch.rows.append(one)
            else:
                batch.faults[one.line] = one
        if strict and batch.faults:
            raise InputError(f"{file}: {_lines([*batch.faults.values()])}")
        return batch

    def resume(self, redo: bool) -> None:
        """Find the rows to do. redo: make changed items again. Raises InputError if an item has changed and redo is
        false."""
        changed = []
        for row in self.rows:
            record = self.folder.record(row)
            if record is None:
                self.pending.append(row)
            elif not self.folder.fits(row, record, self.images):
                changed.append(row)
        if changed and not redo:
            raise InputError(
                f"{len(changed)} of {len(self.rows)} rows have changed in text, options, images, adapters or model "
                f"since their results were written to {self.folder.path} ({_some([row.id for row in changed])})"
                f"{self._model_changed()}; give --redo to make these again, or choose another --out"
            )
        for row in changed:
            self.folder.remove(row)
        self.pending = sorted([*self.pending, *changed], key=lambda row: row.line)

    @property
    def images(self) -> Path:
        """The folder to which image paths are relative."""
        return self.file.absolute().parent

    def run(
        self, results: Results, hold: Callable[[], AbstractContextManager[None]], show: Callable[[int], None]
    ) -> None:
        """Write each result as it arrives. hold: a context in which nothing interrupts; show: called with the number
        of results so far."""
        for count, (row, result) in enumerate(results, 1):
            with hold():
                if isinstance(result, Fault):
                    self.faults[row.line] = result
                else:
                    self.folder.put(row, result)
                    self.written += 1
            show(count)

    def close(self) -> dict[str, int]:
        """Write the manifest, the failures and batch.json. Returns the numbers of rows that are done, have failed
        and are left."""
        faults = [self.faults[line] for line in sorted(self.faults)]
        head = {"input": str(self.file), "seed": self.usual.seed, "model": dict(self.usual.model)}
        return {**self.folder.close(self.rows, faults, head), "written": self.written}

    def _model_changed(self) -> str:
        old: Mapping[str, Any] = self.folder.head().get("model", {})
        now = self.usual.model
        words = [f"{name} was {old.get(name)!r} and is {now[name]!r}" for name in now if old.get(name) != now[name]]
        return f": {', '.join(words)}" if old and words else ""


def _lines(faults: Sequence[Fault]) -> str:
    more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(f"line {fault.line}: {fault.message}" for fault in faults[:NAMED]) + more


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
