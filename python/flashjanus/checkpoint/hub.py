"""Fetch a repository of the Hugging Face hub into its cache: only the files that inference reads."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from flashjanus.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Whether `source` is written like "organisation/name"."""
    return _HUB_ID.fullmatch(source) is not None and ".." not in source


def fetch_repository(
    repo_id: str, revision: str | None, patterns: Sequence[str], weights: Sequence[Sequence[str]]
) -> Path:
    """Folder of the snapshot with the files of `patterns`, and of the first group in `weights` that the repository has.

    CheckpointError with what was tried when the hub cannot be reached and the cache does not hold the repository.
    """
    tried = f"hub repository {repo_id}" + (f" at revision {revision}" if revision else "")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"{tried}: fetching needs huggingface_hub, which is not installed; "
            "pip install huggingface_hub, or pass a local folder"
        ) from None
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
        for group in weights:
            folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(group)))
            if any(any(folder.glob(pattern)) for pattern in group):
                break
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{tried}: not in the local cache and could not be fetched ({type(error).__name__}: {reason}); "
            "check the name, the network and HF_TOKEN (HF_HUB_OFFLINE must be unset), or pass a local folder"
        ) from None
    return folder


def _hub_errors() -> tuple[type[Exception], ...]:
    """What a fetch raises: the hub's own errors, and those of the HTTP client it happens to use."""
    found: list[type[Exception]] = [OSError, ValueError]
    for module, names in (
        ("huggingface_hub.errors", ("HfHubHTTPError", "EntryNotFoundError", "RevisionResolutionError")),
        ("httpx", ("HTTPError",)),
        ("requests", ("RequestException",)),
    ):
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return tuple(found)
