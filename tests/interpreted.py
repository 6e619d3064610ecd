"""Programs of the tests that run Triton in its interpreter: in a process of their own, which sets it up."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_interpreted(program: Path, folder: Path) -> Any:
    """The JSON that `program` writes to the path that it is given; asserts that it succeeds."""
    output = folder / "results.json"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, __file__, str(program), str(output)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def _read_scalars() -> None:
    """Let loops of Triton 3.6 count: its interpreter reads their bounds by int() of arrays of one element, which NumPy
    2.5 refuses."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if __name__ == "__main__":
    _read_scalars()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
