"""The facts that are needed to repeat a measurement: code, command, machine, versions and model."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from flashjanus import __version__
from flashjanus.cli.machine import machine_facts
from flashjanus.cli.options import model_facts

if TYPE_CHECKING:
    from flashjanus.api.tensor_model import TensorModel

VERSIONS = ("torch", "numpy", "triton", "transformers")


def provenance(model: TensorModel) -> dict[str, Any]:
    """The head of a report on `model`."""
    import torch

    from flashjanus.measure.words import commit

    return {
        "flashjanus": __version__,
        "commit": commit(),
        "command": shlex.join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": {"python": platform.python_version(), **_versions()},
        "model": model_facts(model),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
