"""What benchmarks/gpu.py does around the GPU: its report, its budget, processes that end early, and a dry run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import gpu
import pytest
import torch
from flashjanus.engine.plan.w8a8 import QUANTISED
from gpu_stages import budget, checks, kernels, present, report
from gpu_stages.clock import CudaClock
from gpu_stages.workload import Workload, dry_run

SAMPLE = json.loads(Path(__file__).with_name("gpu_sample.json").read_text())
ROOT = Path(gpu.__file__).parents[1]


def test_the_whole_command_runs_dry(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [sys.executable, gpu.__file__, "--dry-run", "--out", tmp_path, "--commit", "c0ffee"]
    done = subprocess.run(args, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("dry-run-*.json")
    data = json.loads(file.read_text())
    stages = data["stages"]
    assert data["commit"] == "c0ffee"
    assert list(stages) == [stage.name for stage in budget.STAGES if stage.name != "official"]
    assert stages["tests"]["exit_code"] == 0
    rows = [*stages["kernels"]["rows"].values(), *stages["model"]["rows"].values()]
    assert len(rows) > 100
    timed = {row["op"] for row in stages["kernels"]["rows"].values()}
    assert {"linear_w8a8", "quantise_rows", *QUANTISED.values()} <= timed
    assert {name.rpartition(" ")[2] for name in stages["kernels"]["programs"]} >= {"int8", "fp8", "unfused"}
    assert all("time" in row for row in rows)
    page = file.with_suffix(".md").read_text()
    assert "the figures mean nothing" in page
    assert "decode_step [B=1, S=40, K=8] unfused: nodes sum to" in page


def lines(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def test_the_report_puts_figures_beside_goals():
    found = {row[0]: row[3] for row in lines(report.goals(SAMPLE["stages"]))}
    assert found["one image, 30 steps with guidance"] == "125 ms"
    assert found["16 images"].startswith("failed: OutOfMemoryError")
    assert found["attention, 2 x 16 heads x 576 queries x 640 keys"] == "untimed: fails 2 of its tests (triton)"
    assert found["depthwise + norm"] == "8 us (cuda)"
    assert found["VAE decode"] == "not measured"
    assert found["flow step of one image beside the official eager code"] == "7.5 x"


def test_the_report_shows_what_was_measured_and_why_the_rest_was_not():
    page = report.markdown(SAMPLE)
    rows = lines(page)
    assert ["flow step", "1", "4.000 (3.900 to 5.000)", "12.000 (11.000 to 13.000)", "3.00", "1.50", "5.0"] in rows
    measured = next(row for row in rows if row[:2] == ["attention", "torch"])
    assert measured[4:8] == ["40.00 (launches included)", "500", "150.0", "25%"]
    assert next(row for row in rows if row[:2] == ["attention", "**triton**"])[4] == "untimed: fails 2 of its tests"
    assert not [row for row in rows if "flash_attn" in row], "refusals are no results"
    assert "nodes sum to 0.016 ms, without 24 nodes that were not timed" in page
    assert "kernels: a process of it ended early, Alarm clock" in page
    assert "memcheck: no errors" in page
    assert "racecheck: NOT clean: 3 errors" in page
    assert ["step 1 compiled", "", "", "failed: out of time", ""] in rows
    assert not gpu.succeeded(SAMPLE["stages"])


@pytest.mark.parametrize(
    ("stages", "good"),
    [
        (
            {"tests": {"passed": 3, "failed": 0}, "kernels": {"rows": {"a": {"time": {}}, "b": {"refused": "why"}}}},
            True,
        ),
        ({"tests": {"passed": 3, "failed": 0}, "sanitizer": {"absent": "not installed"}}, True),
        ({"tests": {"passed": 0, "failed": 0}}, False),
        ({"model": {"rows": {"a": {"skipped": "out of time"}}}}, False),
        ({"model": {"not_run": "needs 40 s"}}, False),
        ({"sanitizer": {"memcheck": {"ok": False}}}, False),
    ],
)
def test_success_is_all_that_was_asked_for(stages, good):
    assert gpu.succeeded(stages) is good


def test_without_a_gpu_it_says_so_and_what_would_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(present, "gpu", lambda: "no NVIDIA driver is installed")
    assert gpu.main() == 2
    said = capsys.readouterr().out
    assert "No GPU to run on: no NVIDIA driver is installed" in said
    assert all(stage.name in said and stage.what in said for stage in budget.STAGES)


DRIVER = """
#include <cstring>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int) { *device = 0; return 0; }
int cuDeviceGetName(char* name, int, int) { std::strcpy(name, "Sample"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? MAJOR : 5; return 0; }
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(("major", "found"), [(9, "95-real"), (7, "Sample is of compute capability 7.5")])
def test_the_driver_says_what_to_build_for(tmp_path, major, found):
    library = tmp_path / "libcuda.so.1"
    build = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", library]
    subprocess.run(build, input=DRIVER.replace("MAJOR", str(major)), text=True, check=True)
    got = present.gpu(str(library))
    assert (got if isinstance(got, str) else got.architecture).startswith(found)
    assert "is not found" in str(present.gpu(str(tmp_path / "none.so")))


def test_a_stage_that_does_not_fit_the_budget_is_left_out():
    least = {stage.name: stage.least for stage in budget.STAGES}
    until, found = {}, {}
    work = {name: lambda until_, name=name: until.setdefault(name, until_) and {} for name in least}
    now = time.time()
    behind = sum(least[name] for name in ("model", "official"))
    budget.run_stages(work, now + least["kernels"] + behind + 5, found.__setitem__)
    assert "needs 15 s, the budget has 0 s" in found["machine"]["not_run"]
    assert found.keys() - until.keys() == {"machine", "tests", "sanitizer"}
    assert least["kernels"] + 4 < until["kernels"] - now < least["kernels"] + 6, "what those behind it need is kept"


def test_a_stage_that_cannot_read_what_it_ran_fails_alone():
    found = {}

    def broken(until: float) -> dict:
        raise ValueError("not JSON")

    budget.run_stages({"tests": broken, "model": lambda until: {}}, time.time() + 1e4, found.__setitem__)
    assert found["tests"]["failed_to_run"] == "ValueError: not JSON"
    assert "failed_to_run" not in found["model"]


def test_nothing_runs_on_a_gpu_that_cannot_be_used():
    found = {}
    work = {"machine": lambda until: {"unusable": "too old"}, "model": lambda until: {}}
    budget.run_stages(work, time.time() + 1e4, found.__setitem__)
    assert list(found) == ["machine"]


PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from gpu_stages import budget
budget.PATIENCE = 1
into, until = Path(sys.argv[2]), float(sys.argv[4])
notes = budget.Notes(into, until, lambda: None, (RuntimeError,))
def fail(): raise RuntimeError("refused")
notes.measure("first", lambda: {{"time": 1}})
notes.measure("fails", fail)
notes.measure("dies", lambda: os._exit(3), {{"op": "silu"}})
notes.measure("hangs", lambda: time.sleep(60))
notes.measure("last", lambda: {{"time": 2}})
notes.save()
"""


def test_a_process_that_dies_or_hangs_costs_its_row(tmp_path):
    program, into = tmp_path / "program.py", tmp_path / "found.json"
    program.write_text(PROGRAM.format(folder=str(ROOT / "benchmarks")))
    found = budget.in_processes([sys.executable, program], into, time.time() + 60)
    assert found["rows"] == {
        "first": {"time": 1},
        "fails": {"failed": "RuntimeError: refused"},
        "dies": {"op": "silu", "failed": "the process ended, or hung, while it ran"},
        "hangs": {"failed": "the process ended, or hung, while it ran"},
        "last": {"time": 2},
    }
    assert [how.partition(":")[0] for how in found["ended"]] == ["exit code 3", "exit code -14"]
    found = budget.in_processes([sys.executable, program], into, time.time() - 1)
    assert found["rows"]["first"] == {"skipped": "out of time"}


def test_a_command_is_stopped_with_all_that_it_started():
    start = time.time()
    code, output = budget.command(["sh", "-c", "echo began; sleep 60 & sleep 60"], start + 1)
    assert (code, output) == (None, "began\n")
    assert time.time() - start < 30


def test_the_official_code_s_timings_are_read_from_what_it_prints(tmp_path):
    script = tmp_path / "official.py"
    script.write_text("import json, sys; print('warning'); print(json.dumps({'step': {'median_s': len(sys.argv)}}))")
    rows = checks.official(script, tmp_path, sys.executable, time.time() + 100)["rows"]
    assert rows["step 1 compiled"]["step"]["median_s"] == rows["step 1 eager"]["step"]["median_s"] + 1
    script.write_text("raise SystemExit('no such repository')")
    rows = checks.official(script, tmp_path, sys.executable, time.time() + 100)["rows"]
    assert rows["step 1 eager"]["failed"] == "exit code 1: no such repository\n"
    rows = checks.official(script, tmp_path, sys.executable, time.time())["rows"]
    assert {row["skipped"] for row in rows.values()} == {"out of time"}


def test_a_kernel_that_fails_its_tests_is_not_timed(tmp_path):
    work = Workload(dry_run())
    notes = budget.Notes(tmp_path / "notes.json", time.time() + 100, lambda: None, (RuntimeError,))
    kernels.run(work, notes, {"linear torch": 2}, {"flops": 1e12, "bytes": 1e11}, 1 << 20)
    linear = [row for row in notes.rows.values() if row["op"] == "linear"]
    assert linear
    assert {row["untimed"] for row in linear} == {"fails 2 of its tests"}
    assert not [row for row in linear if "time" in row]
    assert all("time" in row for row in notes.rows.values() if row["op"] != "linear")


def test_a_kernel_that_computes_something_else_is_not_timed(tmp_path):
    work = Workload(dry_run())
    executor = work.encoder(work.eager)
    executor.run()
    node = next(node for node in executor.plan.nodes if node.op == "gelu")
    arguments, op = kernels.Arguments(executor, node), kernels.get_op("gelu")
    wrong = kernels.Implementation("wrong", lambda x, y, **attrs: y.copy_(x), lambda *of: None)
    op.implementations["wrong"] = wrong
    try:
        found = kernels.time_one(work, op, arguments, "wrong", {"flops": 1e12, "bytes": 1e11}, 1 << 20)
    finally:
        del op.implementations["wrong"]
    assert "time" not in found
    assert found["untimed"] == "its result is not torch's at this size"


def test_a_difference_is_relative_and_never_hides_what_is_not_finite():
    due, nan = torch.tensor([3.0, 4.0]), torch.tensor([torch.nan, 4.0])
    assert kernels.difference([torch.tensor([3.0, 4.5])], [due]) == pytest.approx(0.1)
    assert kernels.difference([due, nan], [due, due]) == 1e9
    assert kernels.difference([nan, due], [due, due]) == 1e9
    assert kernels.difference([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == 0.5


CASE = '<testcase classname="kernels.test_gpu" name="test_meets_the_reference[{}]">{}</testcase>'
JUNIT = f"""<testsuites><testsuite>
{CASE.format("attention-cuda-4-float32", "")}
{CASE.format("attention-cuda-5-bfloat16", "")}
{CASE.format("flow_update-triton-0-bfloat16", "")}
{CASE.format("linear-cuda-0-bfloat16", '<failure message="E&#10;error 3"/>')}
{CASE.format("linear-cuda-1-bfloat16", '<error message="E"/>')}
<testcase classname="model" name="test_vae[None]"><skipped message="no VAE"/></testcase>
</testsuite></testsuites>"""


def test_a_report_of_pytest_is_summarised():
    found = checks.summarised(JUNIT)
    assert (found["passed"], found["failed"], found["skipped"]) == (3, 2, 1)
    assert found["failing_kernels"] == {"linear cuda": 2}
    assert found["failures"][0]["says"] == "E\nerror 3"
    assert found["cuda_cases"] == ["test_meets_the_reference[attention-cuda-5-bfloat16]"]


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


class Graph:
    """Of torch.cuda: a capture that takes all but reading on the host."""

    def __init__(self) -> None:
        self.replays = 0

    def capture_begin(self) -> None: ...

    def capture_end(self) -> None: ...

    def replay(self) -> None:
        self.replays += 1


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 6.0


@pytest.mark.parametrize("capturable", [True, False])
def test_launches_are_timed_in_one_graph_where_one_takes_them(monkeypatch, capturable):
    calls = []
    for name, value in dict(Stream=lambda device: None, stream=lambda s: nullcontext(), Event=Event).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def run(i: int) -> None:
        calls.append(i)
        if len(calls) == 4 and not capturable:
            raise RuntimeError("operation not permitted when stream is capturing")

    samples, captured = CudaClock(torch.device("cuda")).launches(run, 4, 2)
    assert captured is capturable
    assert samples == [6.0 / 4e3] * 2
    assert calls == [0, 1, 2, 0, 1, 2, 3] if capturable else [0, 1, 2, 0, *[0, 1, 2, 3] * 3]
