"""Prove and time the engine on this machine's GPU: tests, sanitizers, every kernel, every stage of the model.

    make gpu                              # builds for the GPU present, then runs this
    python benchmarks/gpu.py [--budget 540] [--out FOLDER] [--official-repo JANUS --official-script SCRIPT]
    python benchmarks/gpu.py --dry-run    # its whole logic on a CPU, on a small model; the figures mean nothing

Writes <gpu>-<date>.json and .md after every stage. Exit code 0: all passed and was measured; 1: something failed or did
not fit the budget, the results say what; 2: no GPU to run on.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu_stages import present, report
from gpu_stages.budget import STAGES, Found, Notes, in_processes, run_stages, write_json

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "build/gpu"
NO_GPU = 2
L2 = 64 << 20
"""Where torch does not say."""


def path(given: str) -> Path:
    return Path(given).resolve()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in STAGES]
    parser.add_argument("--budget", type=float, default=540, help="seconds in all; what does not fit is left out")
    parser.add_argument("--since", type=float, help="count them from this time (seconds since 1970)")
    parser.add_argument("--out", type=path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--commit", help="of these sources, where git is not there to ask")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--official-repo", type=path, help="a checkout of deepseek-ai/Janus")
    parser.add_argument("--official-script", type=path, help="the program that times it, as JSON")
    parser.add_argument("--official-python", default=sys.executable, help="its own python, with what it needs")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU and a small model")
    parser.add_argument("--architecture", action="store_true", help="print the GPU's for CMake, and no more")
    for name, kind in (("--stage", str), ("--into", Path), ("--until", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # of a process of one stage
    return parser.parse_args()


def no_gpu(why: str) -> int:
    print(f"No GPU to run on: {why}.\nOn a machine with one (compute capability 8.0 or later), this would run", end="")
    print(" within its budget of seconds:", *(f"  {s.name:<10} ~{s.usual:3.0f} s  {s.what}" for s in STAGES), sep="\n")
    return NO_GPU


def stage(name: str, into: Path, until: float, dry: bool) -> None:
    """One stage in this process; its findings go into a file."""
    from flashjanus.engine.errors import FlashJanusError
    from flashjanus.engine.runtime.cuda import unusable
    from gpu_stages import kernels, machine, model, workload

    reason = None if dry else unusable(workload.CUDA)
    if reason is not None:
        write_json(into, {"unusable": reason})
        return
    setting = workload.dry_run() if dry else workload.on_gpu()
    if name == "machine":
        found = machine.facts(setting)
        write_json(into, found)
        write_json(into, {**found, "ceilings": machine.ceilings(setting)})
        return
    known = read(SCRATCH / "known.json")
    notes = Notes(into, until, setting.clock.synchronize, (RuntimeError, FlashJanusError, *triton_errors()))
    work = workload.Workload(setting)
    if name == "kernels":
        kernels.run(work, notes, known["failing"], known["ceilings"], known["l2"])
    else:
        model.run(work, notes)


def read(path: Path) -> Found:
    found: Found = json.loads(path.read_text())
    return found


def triton_errors() -> tuple[type[Exception], ...]:
    """Of a kernel that does not compile, or does not fit the GPU."""
    if find_spec("triton") is None:
        return ()
    from triton.errors import TritonError

    return (TritonError,)


class Run:
    """The stages of this command, and the results that they add to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.date = time.strftime("%Y-%m-%d", time.gmtime())
        self.out = args.out or (SCRATCH if args.dry_run else ROOT / "benchmarks/results")
        self.data: Found = {
            "date": self.date,
            "commit": args.commit or commit(),
            "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
            "dry_run": args.dry_run,
            "stages": {},
        }

    def work(self) -> dict[str, Callable[[float], Found]]:
        from gpu_stages import checks

        args, dry = self.args, self.args.dry_run
        every: dict[str, Callable[[float], Found]] = {
            "machine": partial(self.process, "machine"),
            "tests": partial(checks.tests, ROOT, SCRATCH, selected=checks.GPU_TESTS[-1:] if dry else checks.GPU_TESTS),
            "sanitizer": lambda until: checks.sanitizers(ROOT, self.found("tests").get("cuda_cases", []), until),
            "kernels": partial(self.process, "kernels"),
            "model": partial(self.process, "model"),
        }
        if args.official_script and args.official_repo:
            every["official"] = partial(checks.official, args.official_script, args.official_repo, args.official_python)
        return {name: work for name, work in every.items() if name in args.only}

    def found(self, name: str) -> Found:
        found: Found = self.data["stages"].get(name, {})
        return found

    def process(self, name: str, until: float) -> Found:
        machine = self.found("machine")
        ceilings = machine.get("ceilings", {"flops": 1e14, "bytes": 1e12})
        known = {"failing": self.found("tests").get("failing_kernels", {}), "ceilings": ceilings}
        write_json(SCRATCH / "known.json", {**known, "l2": machine.get("l2_bytes", L2)})
        into = SCRATCH / f"{name}.json"
        if self.args.dry_run:
            into.unlink(missing_ok=True)
            stage(name, into, until, dry=True)
            return read(into)
        return in_processes([sys.executable, Path(__file__), "--stage", name], into, until)

    def record(self, name: str, found: Found) -> None:
        self.data["stages"][name] = found
        if "unusable" in found:
            return
        gpu = re.sub(r"[^a-z0-9]+", "-", self.found("machine").get("gpu", "gpu").lower().removeprefix("nvidia "))
        file = self.out / f"{'dry-run' if self.args.dry_run else gpu.strip('-')}-{self.date}"
        write_json(file.with_suffix(".json"), self.data)
        file.with_suffix(".md").write_text(report.markdown(self.data), encoding="utf-8")
        told = "; ".join(report.reasons(found)) or f"done in {found.get('seconds', 0)} s"
        print(f"{name}: {told} -> {file}.md", flush=True)


def commit() -> str:
    """git's, where it is there to ask."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "unknown: no git here, and no --commit"
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown: git did not say"


def succeeded(stages: Found) -> bool:
    """Everything ran, passed and was measured; a refusal is no failure, nor is a tool that is not there."""
    rows = [row for found in stages.values() for row in found.get("rows", {}).values()]
    stopped = [name for name, found in stages.items() if report.reasons(found) and "absent" not in found]
    checks = [it["ok"] for it in stages.get("sanitizer", {}).values() if isinstance(it, dict)]
    failed = any(key in row for row in rows for key in ("failed", "untimed", "skipped"))
    tests = stages.get("tests", {"passed": 1, "failed": 0})  # left out by --only
    failed |= bool(tests.get("failed")) or not tests.get("passed")  # all skipped: no GPU for them
    return not (stopped or failed) and all(checks)


def main() -> int:
    args = arguments()
    if args.dry_run:
        sys.path.insert(0, str(ROOT / "tests"))  # its small model
    if args.stage:
        stage(args.stage, args.into, args.until, args.dry_run)
        return 0
    found = None if args.dry_run else present.gpu()
    if isinstance(found, str):
        return no_gpu(found)
    if args.architecture:
        print("cpu" if found is None else found.architecture)
        return 0
    run = Run(args)
    work = run.work()
    run_stages(work, (args.since or time.time()) + args.budget, run.record)
    unusable = run.found("machine").get("unusable")
    if unusable:
        return no_gpu(unusable)
    print(report.brief(run.data))
    return 0 if args.dry_run or succeeded(run.data["stages"]) else 1


if __name__ == "__main__":
    sys.exit(main())
