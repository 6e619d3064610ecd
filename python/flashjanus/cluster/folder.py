"""The folder of a batch: an item exists once its record does, and a record is written whole or not at all.

records/ID.json   what the item is, with the size and SHA-256 of each of its files; written last
images/ID.png     the images (ID.1.png, ID.2.png, ... if a row asks for several)
manifest.jsonl    the records of all rows, in order, each with the checksum of its own file
failures.jsonl    the rows that failed, and why
batch.json        the batch's settings and progress
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flashjanus.cluster.items import Item, summed
from flashjanus.cluster.rows import Fault, Row
from flashjanus.disk.reading import parse_object, read_json
from flashjanus.disk.writing import whole, write_json, write_text
from flashjanus.errors import InputError, OutputError

MANIFEST, FAILURES, BATCH = "manifest.jsonl", "failures.jsonl", "batch.json"


class Folder:
    """The folder of a batch. One run at a time writes into it, within `writing`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for writing. Raises OutputError if it cannot be written, and InputError if another run is
        writing."""
        try:
            for name in ("records", "images"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("ab")
        except OSError as error:
            words = f"cannot write to {self.path}: {error.strerror}; choose another place with --out"
            raise OutputError(words) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is writing to {self.path}; wait for its end, or choose another --out"
                ) from error
            for left in self.path.rglob(".*.tmp"):  # left by a run that was killed
                left.unlink(missing_ok=True)
            yield

    def record(self, row: Row) -> dict[str, Any] | None:
        """The record of a row's item, if it exists and all its files have the right size."""
        found = _read(self._record(row))
        if found is None or found.get("id") != row.id:
            return None
        return found if all(_size(self.path / one["file"]) == one["bytes"] for one in found["files"]) else None

    def fits(self, row: Row, record: Mapping[str, Any], images: Path) -> bool:
        """Whether an item matches what the row asks for now. images: the folder to which image paths are relative."""
        if record["digest"] != row.digest:
            return False
        written = self._record(row).stat().st_mtime
        return not any(_changed(images / name, sums, written) for name, sums in record.get("shown", {}).items())

    def put(self, row: Row, item: Item) -> None:
        """Write an item, replacing the row's previous one. Raises OutputError."""
        self.remove(row)
        for name, data in item.files.items():
            with whole(self.path / name) as file:
                file.write(data)
        write_text(self._record(row), _line(item.record))

    def remove(self, row: Row) -> None:
        """Remove a row's item. The record goes first, so that no record lacks its files."""
        old = _read(self._record(row))
        try:
            self._record(row).unlink(missing_ok=True)
            for one in (old or {}).get("files", []):
                (self.path / "images" / Path(one["file"]).name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove an old item from {self.path}: {error.strerror}") from error

    def close(self, rows: Sequence[Row], faults: Sequence[Fault], head: Mapping[str, Any]) -> dict[str, int]:
        """Write the manifest and the failures so far. Returns the numbers of rows that are done, have failed and are
        left."""
        done = 0

        def lines() -> Iterator[bytes]:
            nonlocal done
            for row in rows:
                record = self.record(row)
                if record is not None:
                    done += 1
                    yield _line({**record, "record": self._sum(row)}).encode()

        with whole(self.path / MANIFEST) as file:
            file.writelines(lines())
        write_text(self.path / FAILURES, "".join(_line(asdict(fault)) for fault in faults))
        total = len({row.line for row in rows} | {fault.line for fault in faults})
        counts = {"rows": total, "done": done, "failed": len(faults), "left": total - done - len(faults)}
        write_json(self.path / BATCH, {**head, **counts})
        return counts

    def _sum(self, row: Row) -> dict[str, Any]:
        path = self._record(row)
        return {"file": str(path.relative_to(self.path)), **summed(path.read_bytes())}

    def _record(self, row: Row) -> Path:
        return self.path / "records" / f"{row.stem}.json"

    def head(self) -> dict[str, Any]:
        """The contents of batch.json; empty if there is none."""
        return _read(self.path / BATCH) or {}


def verify(path: Path) -> dict[str, Any]:
    """Check that all files of the manifest exist, byte for byte, and count the rows without a result.

    Raises InputError if there is no manifest.
    """
    head = _read(path / BATCH)
    try:
        lines = (path / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected the folder of a batch, with {MANIFEST}: {error}") from error
    if head is None:
        raise InputError(f"{path}: expected the folder of a batch, with {BATCH}")
    damaged: list[dict[str, Any]] = []
    listed: set[str] = set()
    ids: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_object(line)
            files = [entry["record"], *entry["files"]]
            wrong = [reason for one in files if (reason := _differs(path, one)) is not None]
            wrong += ["this id is listed twice"] if entry["id"] in ids else []
            ids.add(entry["id"])
        except (InputError, LookupError, TypeError):
            damaged.append({"id": None, "reason": f"{MANIFEST}: line {number} is damaged"})
            continue
        listed.update(one["file"] for one in files)
        damaged += [{"id": entry["id"], "reason": reason} for reason in wrong]
    if len(lines) != head["done"]:
        damaged.append({"id": None, "reason": f"{MANIFEST}: expected {head['done']} lines, got {len(lines)}"})
    there = {str(one.relative_to(path)) for folder in ("records", "images") for one in (path / folder).glob("*")}
    return {
        "verified": len(lines),
        "files": len(listed),
        "damaged": damaged,
        "unlisted": sorted(name for name in there - listed if not name.endswith(".tmp")),
        "failed": head["failed"],
        "left": head["left"],
    }


def _differs(folder: Path, one: Mapping[str, Any]) -> str | None:
    try:
        with (folder / one["file"]).open("rb") as file:
            same = summed(file.read()) == {name: one[name] for name in ("bytes", "sha256")}
    except OSError as error:
        return f"{one['file']}: {error.strerror}"
    return None if same else f"{one['file']}: its contents differ from what was written"


def _changed(path: Path, sums: Mapping[str, Any], written: float) -> bool:
    """Whether an image differs from the one that the model saw. The contents of an older file are not read."""
    try:
        stat = path.stat()
        if stat.st_size == sums["bytes"] and stat.st_mtime < written:
            return False
        return summed(path.read_bytes()) != sums
    except OSError:
        return False  # the answer exists; it does not matter whether the image still does


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object. Returns None if the file is missing or incomplete, as after a power failure."""
    try:
        return read_json(path)
    except InputError:
        return None


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"
