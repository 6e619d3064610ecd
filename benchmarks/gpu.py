"""Check and time the engine on this machine's GPU, in two calls that each fit into a short lease.

    make gpu CALL=1    # at most 360 s: whether what the plans choose is right, the headline, a profile, alternatives
    make gpu CALL=2    # at most 330 s: the headline with the lessons of call 1, tests, sanitizers, the official code
    python benchmarks/gpu.py --time-plan            # the stages of both calls, with given and expected seconds
    python benchmarks/gpu.py --call 1 --dry-run     # everything on a CPU with a small model; the figures mean nothing

Writes <gpu>-<date>-call-<n>.json and .md after every finding. Exit code 0: everything passed and was measured; 1:
something failed or did not fit, and the results say what; 2: there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_stages import faults, present, report
from gpu_stages.book import Book, Found, read
from gpu_stages.budget import CALLS, SECONDS, Notes, in_processes, run_stages, time_plan

if TYPE_CHECKING:
    from gpu_stages.workload import Setting

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "build/gpu"
NO_GPU = 2
L2 = 64 << 20
CEILINGS = {"flops": 1e14, "bytes": 1e12}
"""Used if torch does not know them, or was not asked."""


def path(given: str) -> Path:
    return Path(given).resolve()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(stage.name for stages in CALLS.values() for stage in stages[1:]))
    parser.add_argument("--call", type=int, choices=CALLS, default=1)
    parser.add_argument("--since", type=float, help="count its seconds from this time (seconds since 1970)")
    parser.add_argument("--out", type=path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--learned", type=path, help="call 1's JSON, for call 2 (default: the newest one)")
    parser.add_argument("--commit", help="of these sources, where git is not there to ask")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--official-repo", type=path, help="a checkout of deepseek-ai/Janus")
    parser.add_argument("--official-script", type=path, help="the program that times it, as JSON")
    parser.add_argument("--official-python", default=sys.executable, help="its own python, with what it needs")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU and a small model, on a stand-in for CUDA")
    parser.add_argument("--time-plan", action="store_true", help="print the stages and their seconds, and no more")
    parser.add_argument("--architecture", action="store_true", help="print the GPU's for CMake, and no more")
    parser.add_argument(
        "--plant", nargs="+", default=[], metavar="FAULT:OP", help=f"in a dry run: {', '.join(faults.FAULTS)}"
    )
    numbers = ("--part", int), ("--parts", int), ("--until", float), ("--limit", float)
    for name, kind in (("--stage", str), ("--book", Path), *numbers):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # of a process of one stage
    return parser.parse_args()


def no_gpu(why: str) -> int:
    print(f"No GPU to run on: {why}.\nOn a machine with one (compute capability 8.0 or later), this would run:")
    print(time_plan())
    return NO_GPU


def stage(args: argparse.Namespace) -> None:
    """Run one stage in this process; its findings go into the book."""
    from flashjanus.engine.device.capabilities import unusable
    from gpu_stages import alternatives, chosen, compile, headline, learned, machine, profile, workload

    if args.stage == "compile":
        compile.part(args.part, args.parts)
        return
    book, name = Book(args.book), args.stage
    reason = None if args.dry_run else unusable(workload.CUDA)
    if reason is not None:
        book.stages[name] = {"unusable": reason}
        book.save()
        return
    setting = stand_in() if args.dry_run else workload.on_gpu()
    if name == "machine":
        found = book.stages[name] = machine.facts(setting)
        book.save()
        found["ceilings"] = machine.ceilings(setting)
        book.save()
        return
    for planted in args.plant:
        faults.plant(planted)
    lessons = book.data.get("learned", {})
    learned.put_in_force(lessons.get("tuned", {}))
    avoided = learned.ended(lessons) if name == "chosen" else learned.faults(lessons, book.found("chosen"))
    limit = args.limit or next(s.limit for s in CALLS[book.data["call"]] if s.name == name)
    notes = Notes(book, name, args.until, limit, setting.clock.synchronize)
    found = book.found("machine")
    ceilings, l2 = found.get("ceilings", CEILINGS), found.get("l2_bytes", L2)
    only = None if book.data["call"] == 1 else [(op, it) for op, it in lessons.get("suspects", [])]
    work = workload.Workload(setting, avoided)
    runs: dict[str, Callable[[], None]] = {
        "chosen": lambda: chosen.run(work, notes, only),
        "headline": lambda: headline.run(work, notes),
        "profile": lambda: profile.run(work, notes),
        "alternatives": lambda: alternatives.run(work, notes, ceilings, l2),
    }
    runs[name]()
    book.save()


def stand_in() -> Setting:
    """The setting of a dry run, whose patches last until this process ends."""
    import pytest
    from gpu_stages import workload

    return workload.dry_run(pytest.MonkeyPatch())


def open_book(args: argparse.Namespace, gpu: str) -> Book:
    """The results of this call, in a file of their own."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    out = args.out or (SCRATCH if args.dry_run else ROOT / "benchmarks/results")
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia ")).strip("-")
    name = f"{slug}-{date}-call-{args.call}"
    file, again = out / f"{name}.json", 2
    while file.exists():  # an earlier try's are kept
        file, again = out / f"{name}.{again}.json", again + 1
    data: Found = {
        "date": date,
        "gpu": gpu,
        "call": args.call,
        "commit": args.commit or commit(),
        "command": shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "dry_run": args.dry_run,
    }
    return Book(file, data)


def work(args: argparse.Namespace, book: Book) -> dict[str, Callable[[float], None]]:
    """Run each stage until its seconds end."""
    from gpu_stages import checks, compile

    def compiled(until: float) -> None:
        book.stages["compile"] = compile.in_parallel(Path(__file__), until)

    def process(name: str, until: float) -> None:
        book.stages.setdefault(name, {})
        book.save()
        again = [flag for flag, on in (("--dry-run", args.dry_run),) if on]
        again += ["--plant", *args.plant] if args.plant else []
        again += ["--limit", str(args.limit)] if args.limit else []
        in_processes([sys.executable, __file__, "--stage", name, "--book", book.path, *again], book, name, until)

    selected = {"tests/pipeline/test_gpu_graphs.py": 1} if args.dry_run else checks.GPU_TESTS
    every: dict[str, Callable[[float], None]] = {
        name: partial(process, name) for name in ("machine", "chosen", "headline", "profile", "alternatives")
    }
    if not args.dry_run:
        every["compile"] = compiled
    every["tests"] = lambda until: checks.tests(ROOT, SCRATCH, book, until, selected)
    every["sanitizer"] = lambda until: checks.sanitizers(ROOT, book, until)
    if args.official_script and args.official_repo:
        of = args.official_script, args.official_repo, args.official_python
        every["official"] = lambda until: checks.official(*of, book, until)
    if args.call == 2 and not book.data["learned"].get("suspects"):
        del every["chosen"]
    return {name: run for name, run in every.items() if name in args.only}


def taught(args: argparse.Namespace, out: Path) -> Found:
    """Read for call 2 what call 1 found."""
    from gpu_stages import learned

    file = args.learned or learned.newest(out, ROOT / "benchmarks/results", SCRATCH)
    if file is None:
        return {"from": "no results of a first call are here: the plans' own choices"}
    try:
        return {"from": file.name, **learned.lessons(read(file))}
    except Exception as error:  # of a call that went wrong: this one is no worse for it
        return {"from": f"{file.name} teaches nothing: {error!r}"}


def commit() -> str:
    """The commit that git reports, if git is installed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "unknown: no git here, and no --commit"
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown: git did not say"


def succeeded(stages: Found, dry: bool = False) -> bool:
    """Whether everything ran, passed and was measured. A missing tool is not a failure, and in a dry run neither is a
    missing GPU."""
    rows = [row for found in stages.values() for row in found.get("rows", {}).values()]
    stopped = [name for name, found in stages.items() if report.reasons(found) and "absent" not in found]
    checks = [it["ok"] for it in stages.get("sanitizer", {}).values() if isinstance(it, dict)]
    files = stages.get("tests", {}).get("files", {}).values()
    failed = any(key in row for row in rows for key in ("failed", "skipped"))
    # all skipped: no GPU for them
    failed |= any(file.get("failed") or not (file.get("passed") or (dry and "passed" in file)) for file in files)
    return not (stopped or failed) and all(checks)


def main() -> int:
    args = arguments()
    if args.time_plan:
        print(time_plan())
        return 0
    sys.path.insert(0, str(ROOT / "tests"))  # the law of errors; of a dry run the small model and the stand-in for CUDA
    if args.plant and not args.dry_run:
        print("--plant: only in a dry run", file=sys.stderr)
        return NO_GPU
    if args.stage:
        stage(args)
        return 0
    found = None if args.dry_run else present.gpu()
    if isinstance(found, str):
        return no_gpu(found)
    if args.architecture:
        print("cpu" if found is None else found.architecture)
        return 0
    begun = args.since or time.time()
    book = open_book(args, "dry-run" if found is None else found.name)
    if args.call == 2:
        book.data["learned"] = taught(args, book.path.parent)
    stages = CALLS[args.call]
    book.stages["build"] = {"seconds": round(time.time() - begun, 1)}
    book.save()

    def told(name: str) -> None:
        here = book.found(name)
        if not args.dry_run:  # where the next call finds it, whatever becomes of the results' folder
            SCRATCH.mkdir(parents=True, exist_ok=True)
            shutil.copy(book.path, SCRATCH)
        says = "; ".join(report.reasons(here)) or f"done in {here.get('seconds', 0)} s"
        print(f"{name}: {says}", flush=True)

    run_stages(stages, work(args, book), book, begun, told)
    unusable = book.found("machine").get("unusable")
    if unusable:
        return no_gpu(unusable)
    print(report.brief(book.data))
    print(f"{book.path} and .md; {time.time() - begun:.0f} of {SECONDS[args.call]:.0f} s")
    return 0 if succeeded(book.stages, args.dry_run) else 1


if __name__ == "__main__":
    sys.exit(main())
