"""The GPU tests and the sanitizers over them, and the official code, each in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from .budget import TAIL, Found, command

GPU_TESTS = (
    "tests/kernels/test_gpu.py",
    "tests/model/test_goldens_gpu.py",
    "tests/pipeline/test_gpu_graphs.py",
)
WORKERS = 4
"""Compilation of Triton kernels takes most of the time, and each worker has a CUDA context."""
KERNEL_TEST = re.compile(r"test_meets_the_reference\[(\w+)-(\w+)-\d+-\w+\]")
SANITIZER_SECONDS = 60.0


def tests(root: Path, folder: Path, until: float, selected: tuple[str, ...]) -> Found:
    """passed, failed, skipped; of each failure its first lines; failed kernel tests by "op implementation"."""
    if find_spec("pytest") is None:
        return {"failed_to_run": f"pytest is not installed for {sys.executable}"}
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    workers = ["-n", str(WORKERS), "--dist", "load"] if find_spec("xdist") and len(selected) > 1 else []
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", *workers]
    args = [sys.executable, "-m", "pytest", *options, *selected]
    code, output = command(args, until, cwd=root)
    found = {"command": " ".join(map(str, args[1:])), "exit_code": code}
    if code not in (0, 1) or not report.is_file():
        how = "ran out of time" if code is None else f"ended with exit code {code}"
        return {**found, "failed_to_run": f"pytest {how}: {output[-TAIL:]}"}
    return {**found, **summarised(report.read_text())}


def summarised(junit: str) -> Found:
    """Of a JUnit report."""
    cases = list(ElementTree.fromstring(junit).iter("testcase"))
    failures, kernels, passed, skipped = [], Counter(), [], Counter()
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        faults = [*case.findall("failure"), *case.findall("error")]
        skips = case.findall("skipped")
        if faults:
            lines = (faults[0].get("message") or faults[0].text or "").strip().splitlines()
            failures.append({"test": name, "says": "\n".join(lines[:6])[:600]})
            kernel = KERNEL_TEST.fullmatch(case.get("name") or "")
            if kernel:
                kernels[" ".join(kernel.groups())] += 1
        elif skips:
            skipped[skips[0].get("message") or ""] += 1
        else:
            passed.append(case.get("name") or "")
    return {
        "passed": len(passed),
        "failed": len(failures),
        "skipped": sum(skipped.values()),
        "skipped_because": dict(skipped),
        "failures": failures,
        "failing_kernels": dict(kernels),
        "cuda_cases": one_case_an_op(passed),
    }


def one_case_an_op(passed: list[str]) -> list[str]:
    """For the sanitizers: the first passed test of each CUDA kernel's op, in bf16 where there is one."""
    chosen: dict[str, str] = {}
    for name in sorted(passed, key=lambda name: not name.endswith("bfloat16]")):
        kernel = KERNEL_TEST.fullmatch(name)
        if kernel and kernel[2] == "cuda":
            chosen.setdefault(kernel[1], name)
    return sorted(chosen.values())


def sanitizers(root: Path, cases: list[str], until: float) -> Found:
    """errors and how each tool put it, over `cases` of tests/kernels/test_gpu.py; only our kernels are watched."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"absent": "compute-sanitizer is not installed"}
    if not cases:
        return {"failed_to_run": "no test of a CUDA C++ kernel has passed"}
    # the option that takes a part of a kernel's name has had two names
    option = "--kernel-name" if "--kernel-name" in command([tool, "--help"], until)[1] else "--kernel-regex"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = [f"{GPU_TESTS[0]}::{case}" for case in cases]
    found: Found = {"cases": cases}
    for check in ("memcheck", "racecheck"):
        args = [tool, "--tool", check, option, "kns=flashjanus", "--error-exitcode", "9", *pytest, *tests]
        end = min(until, time.time() + SANITIZER_SECONDS)
        # without torch's cache every tensor is an allocation of its own, whose end memcheck knows
        code, output = command(args, end, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, root)
        found[check] = verdict(code, output)
    return found


def verdict(code: int | None, output: str) -> Found:
    """ok only where the tool itself counted no error and the tests under it passed."""
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


def official(script: Path, repo: Path, python: str, until: float) -> Found:
    """Timings of the official code by "what batch mode": the JSON that `script` prints, a process each."""
    found: Found = {"rows": {}}
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
    return found
