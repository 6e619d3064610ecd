"""The two calls of benchmarks/gpu.py without a GPU: dry runs, whole, with planted faults, and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import pytest
from flashjanus.engine.ops import get_op
from flashjanus.engine.plan.eight_bits import QUANTIZED
from gpu_stages import budget, checks, chosen
from gpu_stages.book import Book, read
from gpu_stages.workload import Workload
from gpu_stages.workload import dry_run as small

ROOT = Path(gpu.__file__).parents[1]
STAGE_NAMES = [stage.name for stage in budget.CALLS[1]]
PLANTED = {"gelu": "wrong", "silu_mul": "crash", "layer_norm": "hang", "rms_norm": "raise", "linear": "raise"}


def start(out: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, gpu.__file__, "--dry-run", "--out", out, "--commit", "c0ffee", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip


def dry_run(out: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    process = start(out, *args)
    said, _ = process.communicate()
    (file,) = out.glob("dry-run-*.json")
    return process.returncode, read(file), said


@pytest.fixture(scope="module")
def first_call(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("first")
    code, data, said = dry_run(out, "--call", "1")
    assert code == 0, said
    return out, data


def test_the_first_call_runs_dry(first_call):
    out, data = first_call
    stages = data["stages"]
    assert data["commit"] == "c0ffee"
    assert list(stages) == [name for name in STAGE_NAMES if name != "compile"], "Triton serves nothing there"
    assert not [row for found in stages.values() for row in found.get("rows", {}).values() if "failed" in row]
    chosen = stages["chosen"]["rows"].values()
    assert {row["program"] for row in chosen} >= {
        "flow_step 1", "flow_prepare", "decode_step 1", "decode_step 2", "decode_latents", "encode_images",
        "flow_step_recalling 1", "flow_step 1 fp8",
    }  # fmt: skip
    assert {row["op"] for row in chosen} >= {"linear", "quantize_rows", *QUANTIZED.values()}
    assert {row["implementation"] for row in chosen if row["op"] == "linear"} == {"torch", "scaled_mm"}
    headline = stages["headline"]["rows"]
    assert all("time" in row for row in headline.values())
    assert {f"{name} {mode}" for mode in ("graphs", "eager") for name in (
        "flow step 1", "flow step 2", "image 1", "image 2", "decode, greedy 1", "decode, sampled 2", "prefill 1",
        "SigLIP 1", "VAE 1", "flow step 1 fp8", "image 1 fp8", "decode, sampled 1 fp8", "decode, sampled 1 int8",
        "warm-up 1",
    )} <= set(headline)  # fmt: skip
    assert next(iter(headline)) == "flow step 1 graphs", "what is worth most comes first"
    assert set(stages["profile"]["rows"]) == {"trace", "flow step", "token", "VAE", "SigLIP"}
    loops = stages["alternatives"]["rows"]["all steps of one image"]["choices"]
    assert set(loops) == {"one replay a step", "one graph for all steps"}
    tuned = [row for row in stages["alternatives"]["rows"].values() if row.get("op") == "linear"]
    assert any(
        "scaled_mm, flashjanus.engine.ops.linear_scaled:FAST_ACCUMULATION=True" in row["choices"] for row in tuned
    )
    page = next(out.glob("*.md")).read_text()
    assert "the figures mean nothing" in page
    assert sorted("".join(file.suffixes) for file in out.iterdir()) == [".json", ".md", ".trace.json.gz"]


def test_the_second_call_takes_what_the_first_taught(first_call, tmp_path):
    _, data = first_call
    taught = json.loads(json.dumps(data))
    linear = next(row for row in taught["stages"]["chosen"]["rows"].values() if row["op"] == "rms_norm")
    taught["stages"]["chosen"]["rows"]["planted"] = {**linear, "implementation": "gone", "failed": "it was wrong"}
    lesson = tmp_path / "lesson-call-1.json"
    lesson.write_text(json.dumps(taught))
    args = ["--call", "2", "--learned", str(lesson), "--only", "machine", "chosen", "headline", "tests", "sanitizer"]
    code, data, said = dry_run(tmp_path / "out", *args)
    assert code == 0, said
    assert data["learned"]["from"] == "lesson-call-1.json"
    assert data["learned"]["suspects"] == [["rms_norm", "gone"]]
    assert data["stages"]["chosen"]["rows"] == {}, "what no plan chooses any more is not looked at"
    assert all("time" in row for row in data["stages"]["headline"]["rows"].values())
    (file,) = data["stages"]["tests"]["files"].values()
    assert file["skipped"] > 0
    assert file["failed"] == 0


def test_planted_faults_cost_their_own_rows_and_are_avoided(tmp_path):
    planted = [f"{fault}:{op}" for op, fault in PLANTED.items()]
    args = ["--call", "1", "--limit", "25", "--only", "machine", "chosen", "headline", "--plant", *planted]
    code, data, said = dry_run(tmp_path, *args, "hopeless:upsample_nearest")
    assert code == 1, said
    rows = data["stages"]["chosen"]["rows"].values()
    wrong = {(row["op"], row["implementation"]): row for row in rows if "failed" in row}
    hopeless = [("upsample_nearest", name) for name in ("planted", "torch")]
    assert wrong.keys() == {*((op, "planted") for op in PLANTED), *hopeless}
    why = {op: wrong[op, "planted"]["failed"] for op in PLANTED}
    assert why["gelu"].startswith("y is off by")
    assert why["silu_mul"] == why["layer_norm"] == budget.ENDED
    assert why["rms_norm"].startswith("RuntimeError: planted")
    assert wrong["gelu", "planted"]["successor"] == wrong["rms_norm", "planted"]["successor"] == "torch"
    assert not [row for row in (wrong[it] for it in hopeless) if "successor" in row]
    assert {row["op"] for row in rows if row["implementation"] == "torch"} >= PLANTED.keys(), "what serves in its place"
    ended = [how.partition(":")[0] for how in data["stages"]["chosen"]["ended"]]
    assert sorted(ended) == [f"exit code -{number}" for number in (signal.SIGSEGV, signal.SIGALRM)]
    headline = data["stages"]["headline"]["rows"]
    assert all("time" in row for row in headline.values()), "also where nothing right is left"
    without = {name: {why.partition(" ")[0] for why in row.get("without", ())} for name, row in headline.items()}
    assert without["SigLIP 1 graphs"] == {"gelu", "layer_norm", "linear"}
    assert without["decode, sampled 1 eager"] == {"silu_mul", "rms_norm", "linear"}
    assert without["VAE 1 graphs"] == {"linear"}, "what it meets, and no more"
    page = next(tmp_path.glob("*.md")).read_text()
    assert "Measured without gelu planted: y is off by" in page
    assert "**nothing right is left: it serves all the same**" in page


def test_a_call_that_is_killed_leaves_a_valid_report_with_all_that_had_ended(tmp_path):
    process, seconds = start(tmp_path, "--call", "1"), random.uniform(0, 12)
    while not list(tmp_path.glob("*.md")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    children = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert [child for child in children if alive(child)] == [], "a stage's process ends with the call"
    (file,) = tmp_path.glob("dry-run-*.json")
    data = read(file)
    assert data["stages"]["build"]["seconds"] >= 0, f"killed after {seconds} s"
    for found in data["stages"].values():
        for name, row in found.get("rows", {}).items():
            assert {"time", "error", "choices", "kernels", "failed", "skipped"} & row.keys(), (name, seconds)
    page = file.with_suffix(".md").read_text()
    assert page.startswith("# dry-run, call 1")
    ended = [name for name, found in data["stages"].items() if "seconds" in found]
    assert ended == [name for name in STAGE_NAMES if name != "compile"][: len(ended)], f"killed after {seconds} s"


def alive(pid: str) -> bool:
    """Killed processes may still be in the table for a moment."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def book(tmp_path: Path, call: int = 1) -> Book:
    data = {"date": "2000-01-01", "gpu": "none", "call": call, "commit": "0", "command": "c", "dry_run": True}
    made = Book(tmp_path / "book.json", data)
    made.save()
    return made


STAGES = [budget.Stage("build", "", 10, 1), budget.Stage("a", "", 20, 1), budget.Stage("b", "", 30, 1)]


def test_stages_get_their_seconds_and_what_earlier_ones_did_not_need(tmp_path):
    until: dict[str, float] = {}
    work = {name: lambda end, name=name: until.__setitem__(name, end) for name in ("a", "b")}
    now = time.time()
    told: list[str] = []
    budget.run_stages(STAGES, work, book(tmp_path), now, told.append)
    assert told == ["a", "b"]
    assert until["a"] - now == pytest.approx(30, abs=1)
    assert until["b"] - now == pytest.approx(60 - budget.GRACE, abs=1)


def test_a_late_stage_has_its_own_seconds_as_long_as_the_call_has_some(tmp_path):
    until: dict[str, float] = {}
    work = {name: lambda end, name=name: until.__setitem__(name, end) for name in ("a", "b")}
    now, kept = time.time(), book(tmp_path)
    budget.run_stages(STAGES, work, kept, now - 25, lambda name: None)
    assert until["a"] - now == pytest.approx(20, abs=1)
    assert until["b"] - now == pytest.approx(35 - budget.GRACE, abs=1), "to the call's end"
    budget.run_stages(STAGES, work, kept, now - 50, lambda name: None)
    assert kept.stages["b"]["not_run"] == "7 s are left for it of 30"


def test_a_stage_that_cannot_read_what_it_ran_fails_alone_and_an_unusable_gpu_ends_all(tmp_path):
    kept = book(tmp_path)

    def broken(until: float) -> None:
        raise ValueError("not JSON")

    def unusable(until: float) -> None:
        kept.stages["b"] = {"unusable": "too old"}

    stages = [*STAGES, budget.Stage("c", "", 10, 1)]
    ran: list[str] = []
    work = {"a": broken, "b": unusable, "c": lambda until: ran.append("c")}
    budget.run_stages(stages, work, kept, time.time(), lambda name: None)
    assert kept.stages["a"]["failed_to_run"] == "ValueError: not JSON"
    assert ran == []


PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from gpu_stages import budget
from gpu_stages.book import Book
notes = budget.Notes(Book(Path({book!r})), "stage", float(sys.argv[2]), 1, lambda: None)
def fail(): raise RuntimeError("refused")
notes.measure("first", lambda: {{"time": 1}})
notes.measure("fails", fail)
notes.measure("dies", lambda: os._exit(3), {{"op": "silu"}})
notes.measure("hangs", lambda: time.sleep(60))
notes.measure("last", lambda: {{"time": 2}})
"""


def test_a_process_that_dies_or_hangs_costs_its_row(tmp_path):
    program, kept = tmp_path / "program.py", book(tmp_path)
    program.write_text(PROGRAM.format(folder=str(ROOT / "benchmarks"), book=str(kept.path)))
    budget.in_processes([sys.executable, program], kept, "stage", time.time() + 60)
    found = kept.stages["stage"]
    assert found["rows"] == {
        "first": {"time": 1},
        "fails": {"failed": "RuntimeError: refused"},
        "dies": {"op": "silu", "failed": "the process ended, or hung, while it ran"},
        "hangs": {"failed": "the process ended, or hung, while it ran"},
        "last": {"time": 2},
    }
    assert read(kept.path)["stages"]["stage"]["rows"] == found["rows"]
    assert [how.partition(":")[0] for how in found["ended"]] == ["exit code 3", "exit code -14"]


def test_a_row_that_the_stage_s_end_cuts_off_is_no_failure(tmp_path):
    program, kept = tmp_path / "program.py", book(tmp_path)
    program.write_text(
        PROGRAM.format(folder=str(ROOT / "benchmarks"), book=str(kept.path)).replace(" 1, lam", " 60, lam")
    )
    budget.in_processes([sys.executable, program], kept, "stage", time.time() + 4)
    rows = kept.stages["stage"]["rows"]
    assert rows["hangs"] == {"skipped": "out of time while it ran"}
    assert "last" not in rows


def test_a_reference_that_cannot_run_says_nothing_of_an_implementation(monkeypatch):
    work = Workload(small(monkeypatch))
    executor = work.encoder(work.runner(False))
    executor.run()
    node = next(node for node in executor.plan.nodes if node.op == "gelu")
    assert set(chosen._checked(work, executor, node, node.implementation)) == {"error"}

    def broken(*of: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(get_op("gelu"), "reference", broken)
    found = chosen._checked(work, executor, node, node.implementation)
    assert found == {"skipped": "not checked, the reference or torch fails: RuntimeError: CUDA out of memory"}


def test_a_command_is_stopped_with_all_that_it_started():
    start = time.time()
    code, output = budget.command(["sh", "-c", "echo began; sleep 60 & sleep 60"], start + 5)
    assert (code, output) == (None, "began\n")
    assert time.time() - start < 40


TESTS = """
import time
import pytest
@pytest.mark.parametrize("name", ["attention-cuda-4-float32", "attention-cuda-5-bfloat16", "linear-triton-0-bfloat16"])
def test_meets_the_reference(name): pass
def test_fails(): assert 1 == 2, "not equal"
def test_is_skipped(): pytest.skip("no VAE")
def test_hangs(): time.sleep(600)
"""


def test_files_of_tests_are_told_one_by_one_and_a_stopped_one_keeps_what_had_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: name == "pytest" or None)  # without workers: it begins soon
    kept = book(tmp_path)
    for name, text in (("a", TESTS), ("b", TESTS.replace("time.sleep(600)", "pass"))):
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    checks.tests(tmp_path, tmp_path / "scratch", kept, time.time() + 14, {"test_a.py": 1, "test_b.py": 1})
    stopped, whole = kept.stages["tests"]["files"].values()
    assert (stopped["passed"], stopped["failed"], stopped["skipped"]) == (3, 1, 1)
    assert stopped["failed_to_run"].startswith("pytest ran out of time")
    assert (whole["passed"], whole["failed"], whole["skipped"]) == (4, 1, 1)
    assert "not equal" in whole["failures"][0]["says"]
    assert whole["skipped_because"] == {"Skipped: no VAE": 1}
    assert whole["cuda_cases"] == ["test_meets_the_reference[attention-cuda-5-bfloat16]"]


@pytest.mark.parametrize(
    ("code", "output", "ok", "errors"),
    [
        (0, "4 passed in 9s\n========= ERROR SUMMARY: 0 errors", True, 0),
        (9, "4 passed in 9s\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", False, 2),
        (1, "1 failed, 3 passed\n========= ERROR SUMMARY: 0 errors", False, 0),
        (0, "4 passed in 9s\n========= Error: Device not supported", False, None),
        (0, "4 skipped\n========= ERROR SUMMARY: 0 errors", False, 0),
        (None, "", False, None),
    ],
)
def test_a_sanitizer_s_verdict_needs_its_own_count_and_tests_that_passed(code, output, ok, errors):
    found = checks.verdict(code, output)
    assert (found["ok"], found["errors"]) == (ok, errors)


def test_the_official_code_s_timings_are_read_from_what_it_prints(tmp_path):
    script = tmp_path / "official.py"

    def rows(text: str, seconds: float) -> dict[str, Any]:
        script.write_text(text)
        kept = book(tmp_path)
        checks.official(script, tmp_path, sys.executable, kept, time.time() + seconds)
        found: dict[str, Any] = kept.stages["official"]["rows"]
        return found

    prints = "import json, sys; print('warning'); print(json.dumps({'step': {'median_s': len(sys.argv)}}))"
    found = rows(prints, 100)
    assert found["step 1 compiled"]["step"]["median_s"] == found["step 1 eager"]["step"]["median_s"] + 1
    found = rows("raise SystemExit('no such repository')", 100)
    assert found["step 1 eager"]["failed"] == "exit code 1: no such repository\n"
    assert {row["skipped"] for row in rows(prints, 0).values()} == {"out of time"}
