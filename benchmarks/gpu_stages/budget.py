"""Stages within a budget of seconds, each a process of its own, and what they found on disk after every finding.

A kernel may hang, or end its process: the rows before it are kept, its own says so, and those behind it are measured
by a new process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, Any]
MOST = 3
"""Times its usual seconds that a stage may take."""
ATTEMPTS = 8
"""Processes that one stage may lose."""
TAIL = 2000
PATIENCE = 90
"""Seconds for one row, compilation included, before its process is ended."""
FAULTS = (OSError, ValueError, SyntaxError)
"""Of what a stage reads of others' output: files, JSON, XML."""


@dataclass(frozen=True)
class Stage:
    """least: seconds below which it is not worth starting; usual: on an H200, estimated."""

    name: str
    what: str
    least: float
    usual: float


STAGES = (
    Stage("machine", "GPU, driver, versions, clocks; bf16 GEMM and copy, the two ceilings", 15, 20),
    Stage("tests", "every kernel over its op's cases, the goldens in fp32 and bf16, graphs equal to eager", 60, 130),
    Stage("sanitizer", "compute-sanitizer memcheck and racecheck on the CUDA C++ kernels, a case each", 40, 90),
    Stage("kernels", "each implementation of each op at the sizes of the released model's plans", 40, 110),
    Stage("model", "flow step, 30-step image, prefill, decode, VAE, SigLIP at full size, graphs and eager", 40, 80),
    Stage("official", "the official code, eager and compiled (with --official-repo and --official-script)", 30, 60),
)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """All of it or, if the process dies meanwhile, what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        json.dump(data, file, indent=1, allow_nan=False)
        file.write("\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


class Notes:
    """The rows of a stage by name, in a file; one at which an earlier process ended is not tried again."""

    def __init__(self, path: Path, until: float, check: Callable[[], object], errors: tuple[type[Exception], ...]):
        self.path, self.until, self.check, self.errors = path, until, check, errors
        self.data: Found = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
        self.rows: dict[str, Found] = self.data["rows"]
        tried = self.data.pop("trying", None)
        if tried is not None:
            self.rows[tried["name"]] = {**tried["about"], "failed": "the process ended, or hung, while it ran"}

    def measure(self, name: str, run: Callable[[], Found], about: Mapping[str, Any] | None = None) -> None:
        """Keep what `run` finds, or its failure; `about` describes it either way."""
        if name in self.rows:
            return
        about = dict(about or {})
        if time.time() > self.until:
            self.rows[name] = {**about, "skipped": "out of time"}
            return
        self.data["trying"] = {"name": name, "about": about}
        self.save()
        signal.alarm(PATIENCE)  # ends the process also where it waits for the device
        try:
            found = run()
        except self.errors as error:
            found = {"failed": f"{type(error).__name__}: {str(error).strip()[:400]}"}
            self.check()  # raises where the device is lost to this process: the next one goes on
        finally:
            signal.alarm(0)
        del self.data["trying"]
        self.rows[name] = {**about, **found}

    def save(self) -> None:
        write_json(self.path, self.data)


def command(
    args: Sequence[str | Path], until: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int | None, str]:
    """Exit code (None: stopped at `until`, with all that it started) and output of a command."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(map(str, args)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
        try:
            code: int | None = process.wait(max(until - time.time(), 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        log.seek(0)
        return code, log.read().decode(errors="replace")


def in_processes(args: Sequence[str | Path], into: Path, until: float) -> Found:
    """What `args --into FILE --until T` left in the file; started again where it ended early and had got further."""
    into.unlink(missing_ok=True)
    ended: list[str] = []
    for _ in range(ATTEMPTS):
        code, output = command([*args, "--into", into, "--until", str(until)], until + 5)
        if code == 0:
            break
        how = "stopped: out of time" if code is None else f"exit code {code}"
        ended.append(f"{how}: {output[-TAIL:]}")
        if code is None or not into.is_file() or "trying" not in json.loads(into.read_text()):
            break
    data: Found = json.loads(into.read_text()) if into.is_file() else {}
    tried = data.pop("trying", None)
    if tried is not None:
        data["rows"][tried["name"]] = {**tried["about"], "failed": "stopped while it ran"}
    return {**data, "ended": ended} if ended else data


def run_stages(work: Mapping[str, Callable[[float], Found]], ends: float, record: Callable[[str, Found], None]) -> None:
    """Run the stages of `work` in order, each until there is just time for those behind it; `record` what they give.

    One that finds the GPU unusable is the last.
    """
    stages = [stage for stage in STAGES if stage.name in work]
    for i, stage in enumerate(stages):
        start = time.time()
        left = ends - sum(later.least for later in stages[i + 1 :]) - start
        if left < stage.least:
            record(stage.name, {"not_run": f"needs {stage.least:.0f} s, the budget has {max(left, 0):.0f} s for it"})
            continue
        try:
            found = work[stage.name](start + min(left, MOST * stage.usual))
        except FAULTS as error:
            found = {"failed_to_run": f"{type(error).__name__}: {error}"}
        record(stage.name, {**found, "seconds": round(time.time() - start, 1)})
        if "unusable" in found:
            return
