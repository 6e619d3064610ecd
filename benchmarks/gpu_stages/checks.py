"""The GPU tests, the sanitizers over them, and the official code, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from .book import Book, Found
from .budget import TAIL, command

KERNELS = "tests/kernels/test_gpu.py"
GPU_TESTS = {KERNELS: 9, "tests/model/test_goldens_gpu.py": 3, "tests/pipeline/test_gpu_graphs.py": 2}
"""Test files, and how many processes each takes on 16 cores: most of the time goes into compilation and references on
the CPU."""
LONGEST_TEST = 25
"""Seconds."""
KERNEL_TEST = re.compile(r"test_meets_the_reference\[(\w+)-(\w+)-\d+-\w+\]")


def tests(root: Path, scratch: Path, book: Book, until: float, selected: Mapping[str, int]) -> None:
    """Add each file's findings when it ends: passed, failed, skipped, and the last lines of each failure. The files run
    side by side, each with the given number of processes."""
    found = book.stages.setdefault("tests", {"files": {}})
    if find_spec("pytest") is None:
        found["failed_to_run"] = f"pytest is not installed for {sys.executable}"
        return
    found["files"] |= {file: {"skipped_file": "stopped while it ran"} for file in selected}
    book.save()
    start, lock = time.time(), Lock()

    def one(file: str, workers: int) -> None:
        ended = test(root, scratch, until, file, workers)
        with lock:
            found["files"][file] = {**ended, "seconds": round(time.time() - start, 1)}
            book.save()

    with ThreadPoolExecutor(len(selected)) as pool:
        list(pool.map(one, selected, selected.values()))


def test(root: Path, scratch: Path, until: float, file: str, workers: int) -> Found:
    """Run one file's tests, in several processes if xdist is installed. If the run is stopped, the tests that had ended
    count."""
    outcomes = scratch / f"{Path(file).stem}.jsonl"
    outcomes.parent.mkdir(parents=True, exist_ok=True)
    outcomes.write_text("")
    several = ["-n", str(workers), "--dist", "load"] if find_spec("xdist") else []
    limited = ["--timeout", str(LONGEST_TEST), "--timeout-method", "thread"] if find_spec("pytest_timeout") else []
    options = ["-q", "-p", "no:cacheprovider", "-p", "gpu_stages.outcomes", "--tb=short", *several, *limited]
    path = os.pathsep.join(filter(None, (str(root / "benchmarks"), os.environ.get("PYTHONPATH"))))
    env = {"GPU_OUTCOMES": str(outcomes), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    code, output = command([sys.executable, "-m", "pytest", *options, file], until, env, root)
    found = summarized([json.loads(line) for line in outcomes.read_text().splitlines()])
    if code not in (0, 1):
        how = "ran out of time" if code is None else f"ended with exit code {code}"
        found["failed_to_run"] = f"pytest {how}: {output[-TAIL:]}"
    return {"exit_code": code, **found}


def summarized(outcomes: Sequence[Mapping[str, str]]) -> Found:
    """cuda_cases: the tests that the sanitizers may run."""
    by = {kind: [it for it in outcomes if it["outcome"] == kind] for kind in ("passed", "failed", "skipped")}
    return {
        **{kind: len(those) for kind, those in by.items()},
        "skipped_because": dict(Counter(it["says"] for it in by["skipped"])),
        "failures": [{"test": it["test"], "says": it["says"]} for it in by["failed"]],
        "cuda_cases": one_case_an_op([it["test"].rpartition("::")[2] for it in by["passed"]]),
    }


def one_case_an_op(passed: list[str]) -> list[str]:
    """For the sanitizers: the first passed test of each CUDA kernel's op, in bf16 if there is one."""
    chosen: dict[str, str] = {}
    for name in sorted(passed, key=lambda name: not name.endswith("bfloat16]")):
        kernel = KERNEL_TEST.fullmatch(name)
        if kernel and kernel[2] == "cuda":
            chosen.setdefault(kernel[1], name)
    return sorted(chosen.values())


def sanitizers(root: Path, book: Book, until: float) -> None:
    """The errors of each tool and its own summary, over a passed case of each op in tests/kernels/test_gpu.py. Only the
    kernels of this repository are watched."""
    found = book.stages.setdefault("sanitizer", {})
    tool = shutil.which("compute-sanitizer")
    cases = book.found("tests").get("files", {}).get(KERNELS, {}).get("cuda_cases", [])
    if tool is None:
        found["absent"] = "compute-sanitizer is not installed"
        return
    if not cases:
        found["failed_to_run"] = "no test of a CUDA C++ kernel has passed"
        return
    # the option that takes a part of a kernel's name has had two names
    option = "--kernel-name" if "--kernel-name" in command([tool, "--help"], until)[1] else "--kernel-regex"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = [f"{KERNELS}::{case}" for case in cases]
    found["cases"] = cases

    def run(check: str) -> Found:
        args = [tool, "--tool", check, option, "kns=flashjanus", "--error-exitcode", "9", *pytest, *tests]
        # without torch's cache every tensor is an allocation of its own, whose end memcheck knows
        return verdict(*command(args, until, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}, root))

    tools = ("memcheck", "racecheck")
    with ThreadPoolExecutor(len(tools)) as pool:  # both wait for the CPU most of the time
        found |= dict(zip(tools, pool.map(run, tools), strict=True))
    book.save()


def verdict(code: int | None, output: str) -> Found:
    """Passed only if the tool itself counted no error and the tests under it passed."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (.*)", output)
    ran = re.search(r"(\d+) passed", output)
    told = [line for line in output.splitlines() if line.startswith("=========")]
    return {
        "ok": code == 0 and bool(summary) and summary[-1][0] == "0" and ran is not None,
        "exit_code": code,
        "errors": int(summary[-1][0]) if summary else None,
        "passed": int(ran[1]) if ran else 0,
        "says": "\n".join(told[:12] if summary else output.splitlines()[-12:])[:TAIL],
    }


def official(script: Path, repo: Path, python: str, book: Book, until: float) -> None:
    """Timings of the official code by "what batch mode": the JSON that `script` prints, with one process for each."""
    found = book.stages.setdefault("official", {"rows": {}})
    runs = [(what, 1, compiled) for compiled in (False, True) for what in ("step", "understand")]
    runs += [("step", 16, False), ("understand", 8, False), ("understand", 32, False), ("step", 4, False)]
    for what, rows, compiled in runs:
        name = f"{what} {rows} {'compiled' if compiled else 'eager'}"
        if until - time.time() < 20:
            found["rows"][name] = {"skipped": "out of time"}
            continue
        sizes = ["--size", "full", "--dtype", "bfloat16", "--device", "cuda", "--what", what, "--batch", str(rows)]
        counts = ["--repeats", "10", "--warmup", "3", "--new-tokens", "32"]
        args = [python, script, "--repo", repo, *sizes, *counts, *(["--compile"] if compiled else [])]
        code, output = command(args, until)
        lines = [line for line in output.splitlines() if line.startswith("{")]
        failed = "out of time" if code is None else f"exit code {code}: {output[-TAIL:]}"
        found["rows"][name] = json.loads(lines[-1]) if code == 0 and lines else {"failed": failed}
        book.save()
