"""Turns a row's result into files: its images, and a record of what they are and how they were made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flashjanus.api.png import png
from flashjanus.cluster.flight import WINDOW, served
from flashjanus.cluster.rows import Fault, Row, contents, request
from flashjanus.errors import FlashJanusError
from flashjanus.serving.backend import Backend
from flashjanus.serving.messages import Answered, Facts, Images


@dataclass(frozen=True)
class Item:
    """record: the JSON record. files: file contents by name, relative to the batch's folder."""

    record: Mapping[str, Any]
    files: Mapping[str, bytes]


def items(
    backend: Backend, rows: Iterable[Row], folder: Path, window: int = WINDOW
) -> Generator[tuple[Row, Item | Fault], None, None]:
    """Yield each row's item, or the reason why it has none, in the order in which they end. folder: the folder to
    which image paths are relative. Raises the engine's error if the engine has ended."""
    facts = backend.facts
    for row, result in served(backend, rows, lambda row: request(row, folder), window):
        try:
            if isinstance(result, FlashJanusError):
                raise result
            found = item(row, result, facts, folder)
        except FlashJanusError as error:
            yield row, Fault.of(row, error)
        else:
            yield row, found


def item(row: Row, result: Images | Answered, facts: Facts, folder: Path) -> Item:
    """Make the item of a result. Raises InputError for a prompt that PNG text cannot hold, or for a missing image."""
    record: dict[str, Any] = {"id": row.id, "kind": row.kind}
    files: dict[str, bytes] = {}
    if isinstance(result, Images):
        record |= {"prompt": row.text, "options": row.options, "seeds": result.seeds, "scores": result.scores}
        for number, picture in enumerate(result.images, 1):
            name = f"{row.stem}.png" if len(result.images) == 1 else f"{row.stem}.{number}.png"
            seed = row.options["seed"] if result.seeds is None else result.seeds[number - 1]
            files[f"images/{name}"] = _encoded(picture, row, seed, facts)
    else:
        shown = {name: contents(name, folder) for name in row.images if not name.startswith("data:")}
        record |= {
            "question": row.text,
            "images": row.images,
            "shown": {name: summed(data) for name, data in shown.items() if isinstance(data, bytes)},
            "options": row.options,
            "answer": result.text,
            "reason": result.reason,
        }
    record |= {
        "files": [{"file": name, **summed(data)} for name, data in files.items()],
        # without cached_tokens, which depends on timing
        "usage": {name: count for name, count in asdict(result.usage).items() if name != "cached_tokens"},
        "model": {name: getattr(facts, name) for name in ("name", "dtype", "device", "quantization")},
        **_adapter(row, facts),
        "version": facts.version,
        "digest": row.digest,
    }
    return Item(record, files)


def summed(data: bytes) -> dict[str, Any]:
    """Size and SHA-256 of the data."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _adapter(row: Row, facts: Facts) -> dict[str, str]:
    """Where the row's adapter was loaded from, if it has one."""
    name = row.options.get("adapter")
    return {} if name is None else {"adapter": facts.adapters[name]}


def _encoded(picture: Any, row: Row, seed: Any, facts: Facts) -> bytes:
    text = {
        "prompt": row.text,
        "seed": str(seed),
        **{name: str(value) for name, value in row.options.items() if name != "seed"},
        **_adapter(row, facts),
        "model": facts.name,
        "Software": f"flashjanus {facts.version}",
    }
    file = io.BytesIO()
    png(Image.fromarray(picture), text)(file)
    return file.getvalue()
