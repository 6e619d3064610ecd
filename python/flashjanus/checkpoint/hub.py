"""Downloads from a Hugging Face hub repository into its cache, limited to the files that inference reads."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashjanus.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form "organization/name"."""
    return _HUB_ID.fullmatch(source) is not None and ".." not in source


def fetch_repository(
    repo_id: str,
    revision: str | None,
    patterns: Sequence[str],
    weights: Sequence[Sequence[str]],
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Folder of a snapshot with files matching `patterns`, and the first group of `weights` that the repository has.

    options: those of huggingface_hub's snapshot_download, such as cache_dir, local_files_only and token.
    Raises CheckpointError with what was tried and why it failed, unless the cache holds the repository.
    """
    tried = f"hub repository {repo_id}" + (f" at revision {revision}" if revision else "")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"{tried}: fetching needs huggingface_hub, which is not installed; "
            "pip install huggingface_hub, or pass a local folder"
        ) from None
    cache = str(_setting("HF_HUB_CACHE") or "")
    if cache.startswith("~"):
        raise CheckpointError(
            f"{tried}: there is no folder to keep it in, because HOME is not set and this user has no home; set "
            "HF_HOME to a folder that this user may write to, or pass a local folder"
        )
    more = dict(options or {})
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns), **more))
        for group in weights:
            folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(group), **more))
            if any(any(folder.glob(pattern)) for pattern in group):
                break
    except _hub_errors() as error:
        raise CheckpointError(f"{tried}: {_cause(error, cache)}, or pass a local folder") from None
    return folder


def _cause(error: Exception, cache: str) -> str:
    """Why a download failed, and what to do."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        where = f" at {cache}" if cache else ""
        return (
            f"the hub's cache{where} cannot be used ({error.strerror}: {error.filename}); set HF_HOME to a folder that "
            "this user may write to"
        )
    known = {
        "GatedRepoError": "its conditions must be accepted on the hub first; accept them there and set HF_TOKEN",
        "RepositoryNotFoundError": "there is no such repository, or it is private; check the name and HF_TOKEN",
        "RevisionNotFoundError": "it has no such revision; check the name of the branch, tag or commit",
    }
    if kind in known:
        return known[kind]
    if _setting("HF_HUB_OFFLINE") and kind != "IncompleteSnapshotError":
        return f"not in the local cache at {cache}, and HF_HUB_OFFLINE is set; unset it to fetch"
    reason = (str(error).strip() or kind).splitlines()[0]
    return (
        f"not in the local cache and could not be fetched ({kind}: {reason}); check the name, the network and HF_TOKEN"
    )


def _setting(name: str) -> object:
    """A setting of huggingface_hub, as read from the environment; None if it has no such setting."""
    try:
        return getattr(importlib.import_module("huggingface_hub.constants"), name, None)
    except (ImportError, ValueError):  # ValueError: an environment variable should be a number and is not
        return None


def _hub_errors() -> tuple[type[Exception], ...]:
    """The exceptions a download raises: the hub's own errors and those of the HTTP client that it uses."""
    found: list[type[Exception]] = [OSError, ValueError]
    try:
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        return tuple(found)
    for name in ("EntryNotFoundError", "RevisionResolutionError", "CachedRepoTreeNotFoundError"):
        found += [getattr(errors, name)] if hasattr(errors, name) else []
    return (*found, *(kind for kind in errors.HfHubHTTPError.__mro__ if kind not in Exception.__mro__))
