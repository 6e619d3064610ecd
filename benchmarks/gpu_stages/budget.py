"""The two calls with their stages and seconds, the processes of stages, and how a stage recovers when its process ends.

A kernel may hang, or end its process. The rows before it are kept, its own row says what happened, and a new process
measures the rows after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .book import Book, Found

ENDED = "the process ended, or hung, while it ran"
"""The finding of a row whose process ended before it could say more."""
ATTEMPTS = 8
"""The number of processes that one stage may lose."""
TAIL = 2000
LEAST = 8.0
"""No stage starts with fewer seconds left, because its process has to import torch."""
GRACE = 3.0
"""Seconds in which a stage's process may write its last row; a call reserves them at its end."""


@dataclass(frozen=True)
class Stage:
    """given: the seconds that it may take; expected: estimated seconds on an H200; limit: the seconds of one row."""

    name: str
    what: str
    given: float
    expected: float
    limit: float = 0.0


BUILD = Stage("build", "the native module for this GPU, where none for these sources is there", 35, 25)
HEADLINE = "step, image, decode, prefill, VAE, SigLIP, fp8 and int8 at full size, captured and eager"
CALLS: dict[int, tuple[Stage, ...]] = {
    1: (
        BUILD,
        Stage("machine", "GPU, driver, versions, clocks; bf16 GEMM and copy, the two ceilings", 15, 12),
        Stage("compile", "every Triton kernel that the released model's plans may launch, on all cores", 25, 18),
        Stage("chosen", "what the released model's plans choose, at their shapes, against float32 torch", 50, 35, 25),
        Stage("headline", HEADLINE, 115, 95, 30),
        Stage("profile", "kernels of a step, a token, the VAE and SigLIP by node, with the gaps", 35, 25, 30),
        Stage("alternatives", "implementations, tiles, accumulation, one graph for all steps, in turns", 85, 85, 30),
    ),
    2: (
        BUILD,
        Stage("machine", "GPU, driver, versions, clocks; the two ceilings", 15, 12),
        Stage("compile", "as in the first call, where its cache is gone", 25, 18),
        Stage("chosen", "what was wrong in the first call, again", 15, 8, 25),
        Stage("headline", f"{HEADLINE}, with what the first call taught", 95, 95, 30),
        Stage("tests", "every kernel over its op's cases, the goldens, graphs equal to eager; file by file", 65, 60),
        Stage("sanitizer", "compute-sanitizer memcheck and racecheck on the CUDA C++ kernels, a case each", 50, 45),
        Stage("official", "the official code, eager and compiled (with --official-repo and --official-script)", 30, 30),
    ),
}
SECONDS = {call: sum(stage.given for stage in stages) for call, stages in CALLS.items()}
"""360 and 330 of the 900 seconds of a lease: the start takes one or two minutes, and a call that fails can be repeated.
"""


def time_plan() -> str:
    """The calls and their stages as a table."""
    lines = []
    for call, stages in CALLS.items():
        lines.append(f"call {call}: {SECONDS[call]:.0f} s given, {sum(s.expected for s in stages):.0f} s expected")
        lines += [f"  {s.name:<13}{s.given:4.0f} s given {s.expected:4.0f} s expected   {s.what}" for s in stages]
    return "\n".join(lines)


class Notes:
    """The rows of a stage by name, in the book. A row at which an earlier process ended is not tried again.

    limit: seconds of one row, compilation included, after which its process is ended. check: raises if this process has
    lost the device.
    """

    def __init__(self, book: Book, stage: str, until: float, limit: float, check: Callable[[], object]) -> None:
        self.book, self.until, self.limit, self.check = book, until, limit, check
        self.data: Found = book.stages.setdefault(stage, {})
        self.rows: dict[str, Found] = self.data.setdefault("rows", {})
        ended(self.data, {"failed": ENDED})

    def measure(self, name: str, run: Callable[[], Found], about: Mapping[str, object] | None = None) -> None:
        """Keep what `run` finds, or its failure; `about` describes the row in both cases."""
        if name in self.rows:
            return
        about = dict(about or {})
        if time.time() > self.until:
            self.rows[name] = {**about, "skipped": "out of time"}
            return
        self.data["trying"] = {"name": name, "about": about}
        self.book.save(page=False)
        # ends the process also where it waits for the device
        signal.setitimer(signal.ITIMER_REAL, max(min(self.limit, self.until + GRACE - time.time()), 0.1))
        try:
            found = run()
        except Exception as error:  # whatever it is, it is this row's finding
            found = {"failed": f"{type(error).__name__}: {str(error).strip()[:400]}"}
            self.data["trying"]["says"] = found["failed"]
            self.book.save(page=False)
            self.check()  # a device that is lost ends the process, and the next one goes on
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        del self.data["trying"]
        self.rows[name] = {**about, **found}
        self.book.save()


def ended(data: Found, why: Found) -> None:
    """Turn the row that was being tried, if any, into one that says why it has no result."""
    tried = data.pop("trying", None)
    if tried is not None:
        says = {"says": tried["says"]} if "says" in tried else {}
        data["rows"][tried["name"]] = {**tried["about"], **says, **why}


def dies_with_its_parent() -> None:
    """Runs in a child before it becomes another program, so that a killed call leaves nothing on the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def command(
    args: Sequence[str | Path], until: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int | None, str]:
    """The exit code and the output of a command. The code is None if the command and its children were stopped at
    `until`."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(map(str, args)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            preexec_fn=dies_with_its_parent,
        )
        try:
            code: int | None = process.wait(max(until - time.time(), 1))
        except subprocess.TimeoutExpired:
            code = None
        if code is None or code < 0:  # what it started may have outlived it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read().decode(errors="replace")


def in_processes(args: Sequence[str | Path], book: Book, stage: str, until: float) -> None:
    """Let `args --until T` add to the stage in the book. It starts again if it ended early after making progress."""
    told: list[str] = []
    for _ in range(ATTEMPTS):
        code, output = command([*args, "--until", str(until)], until + GRACE)
        book.reload()
        found = book.found(stage)
        if code == 0:
            break
        how = "stopped: out of time" if code is None else f"exit code {code}"
        told.append(f"{how}: {output[-TAIL:]}")
        if code is None or "trying" not in found or time.time() > until:
            break
    found = book.stages.setdefault(stage, {})
    ended(found, {"skipped": "out of time while it ran"} if time.time() >= until else {"failed": ENDED})
    if told:
        found["ended"] = told


def run_stages(
    stages: Sequence[Stage],
    work: Mapping[str, Callable[[float], None]],
    book: Book,
    begun: float,
    told: Callable[[str], None],
) -> None:
    """Run the stages that have work, in order, each until its seconds end.

    Later stages get the seconds that a stage does not need. A stage that begins late still has its own seconds, and the
    last stage has all that are left. A stage that finds the GPU unusable is the last.
    """
    ends = begun + sum(stage.given for stage in stages) - GRACE
    due = begun
    for stage in stages:
        due += stage.given
        if stage.name not in work:
            continue
        start = time.time()
        last = not any(later.name in work for later in stages[stages.index(stage) + 1 :])
        until = ends if last else min(max(due, start + stage.given), ends)
        if until - start < LEAST:
            book.stages[stage.name] = {"not_run": f"{max(until - start, 0):.0f} s are left for it of {stage.given:.0f}"}
        else:
            try:
                work[stage.name](until)
            except Exception as error:  # the stages after it run all the same
                book.stages.setdefault(stage.name, {})["failed_to_run"] = f"{type(error).__name__}: {error}"
            book.found(stage.name)["seconds"] = round(time.time() - start, 1)
        if "unusable" in book.found(stage.name):
            return
        book.save()
        told(stage.name)
