"""Finds the small files of a checkpoint, with transformers' options for the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint.files import TEXT_FILES
from flashjanus.checkpoint.hub import fetch_repository, is_hub_id
from flashjanus.disk.paths import is_file, is_folder
from flashjanus.errors import CheckpointError

HUB = ("revision", "cache_dir", "local_files_only", "token", "force_download")
"""Options of a download from the hub."""
WITHOUT_EFFECT = ("trust_remote_code", "use_fast", "adapter_kwargs", "_from_auto", "_commit_hash", "code_revision")
"""Options that transformers or scripts pass, and that have no effect here."""


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of a download and those without effect from `options`, and return the former."""
    for name in WITHOUT_EFFECT:
        options.pop(name, None)
    found = {name: options.pop(name) for name in HUB if name in options}
    return {name: value for name, value in found.items() if value is not None}


def text_files(source: str | os.PathLike[str], options: dict[str, Any]) -> dict[str, Path]:
    """Map the names of the tokenizer and processor files of a folder, a hub id, or a built-in model to their paths.
    From the hub only these files are downloaded. Raises `CheckpointError`."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise CheckpointError(f"checkpoint: expected a folder or a hub id, got {source!r:.80}")
    name = os.fspath(source)
    folder = builtin_folder(name) if name in NAMES else Path(name).expanduser()
    if not is_folder(folder):
        if not is_hub_id(name):
            raise CheckpointError(
                f"{name:.200}: no such folder; expected a checkpoint folder or a hub id such as organization/name"
            )
        options = dict(options)
        folder = fetch_repository(name, options.pop("revision", None), TEXT_FILES, [], options)
    return {file: folder / file for file in TEXT_FILES if is_file(folder / file)}
