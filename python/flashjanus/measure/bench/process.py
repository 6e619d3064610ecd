"""Processes of their own: what another Python answers, and what a fresh one of ours needs until it has something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flashjanus.errors import InputError, PeerError

LAST_WORDS = 400
_IMPORT = "from flashjanus import JanusFlow; import json, os, sys; "
_DRAW = (
    "source, steps = json.loads(sys.argv[1]); "
    "JanusFlow.from_pretrained(**source).generate_image('a red circle', num_inference_steps=steps, seed=0); "
)
_END = "print('true', flush=True); os._exit(0)"
"""Without the interpreter's tidying up, which nobody waits for."""


def answer(who: str, command: Sequence[str]) -> Any:
    """The JSON in the last line that `command` prints, run with as many threads as this process. Raises PeerError."""
    threads = {name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode or not lines:
        said = ran.stderr.strip()[-LAST_WORDS:] or "nothing"
        raise PeerError(f"{who}: exit code {ran.returncode} of {' '.join(command)}; it said: {said}")
    try:
        return json.loads(lines[-1])
    except ValueError:
        raise PeerError(f"{who}: expected JSON in the last line, got {lines[-1][:LAST_WORDS]}") from None


def check_python(path: str) -> str:
    """`path`, where it can be run. Raises InputError."""
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise InputError(f"--official-python {path}: expected an existing file that can be run")
    return path


def import_package() -> None:
    """A fresh Python, until it has imported the model class, torch included. Raises PeerError."""
    answer("import", [sys.executable, "-c", _IMPORT + _END])


def start(source: Mapping[str, Any], steps: int) -> None:
    """A fresh Python, until it has one image; `source`: arguments of `JanusFlow.from_pretrained`. Raises PeerError."""
    answer("start", [sys.executable, "-c", _IMPORT + _DRAW + _END, json.dumps([dict(source), steps])])
