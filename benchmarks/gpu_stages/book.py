"""The results of a call, written to disk after every finding, so that an interrupted call keeps what it has found.

The results are one file of JSON and a page made from it, both replaced as a whole. The command and the process of its
stage write the same file, but never at the same time, because the command waits while a stage has a process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashjanus.disk.writing import write_json, write_text

from . import report

Found = dict[str, Any]


class Book:
    """`data` and the file that holds it; `stages` are the findings by stage."""

    def __init__(self, path: Path, data: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.data: Found = read(path) if data is None else {**data, "stages": {}}

    @property
    def stages(self) -> dict[str, Found]:
        stages: dict[str, Found] = self.data["stages"]
        return stages

    def found(self, stage: str) -> Found:
        """What a stage has found so far."""
        return self.stages.get(stage, {})

    def reload(self) -> None:
        """Read what a stage's process has written."""
        self.data = read(self.path)

    def save(self, page: bool = True) -> None:
        """Write both files. Without `page`, the page stays as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)
        if page:
            write_text(self.path.with_suffix(".md"), self._page())

    def _page(self) -> str:
        try:
            return report.markdown(self.data)
        except Exception as error:  # the findings are more than their page, and later ones are still to come
            return f"This page could not be made: {error!r}. The findings are in {self.path.name}.\n"


def read(path: Path) -> Found:
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found
