"""Runs other processes: asks another Python for an answer, and times a fresh one of ours until it has a result."""

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
"""Exits without the interpreter's cleanup, which nobody waits for."""


def answer(who: str, command: Sequence[str]) -> Any:
    """Run `command` with as many threads as this process has; return the JSON in its last line. Raises PeerError."""
    threads = {name: str(torch.get_num_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode or not lines:
        said = ran.stderr.strip()[-LAST_WORDS:] or "nothing"
        raise PeerError(f"{who}: exit code {ran.returncode} of {' '.join(command)}; its stderr ends with: {said}")
    try:
        return json.loads(lines[-1])
    except ValueError:
        raise PeerError(f"{who}: expected JSON in the last line, got {lines[-1][:LAST_WORDS]}") from None


def check_python(path: str) -> str:
    """`path`, if it is executable. Raises InputError."""
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise InputError(f"--official-python {path}: expected an existing file that can be run")
    return path


def import_package() -> None:
    """Run a fresh Python until it has imported the model class, including torch. Raises PeerError."""
    answer("import", [sys.executable, "-c", _IMPORT + _END])


def start(source: Mapping[str, Any], steps: int) -> None:
    """Run a fresh Python until it has an image. source: arguments of `JanusFlow.from_pretrained`. Raises PeerError."""
    answer("start", [sys.executable, "-c", _IMPORT + _DRAW + _END, json.dumps([dict(source), steps])])
