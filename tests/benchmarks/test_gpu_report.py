"""What benchmarks/gpu.py makes of findings: its page, its time plan, what call 2 learns, and the trace of a profile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import gpu
import pytest
import torch
from flashjanus.triton_kernels import scaled_matmul
from gpu_stages import budget, learned, present, profile, report
from gpu_stages.book import Book
from gpu_stages.clock import CudaClock
from gpu_stages.workload import Faults

SAMPLE = json.loads(Path(__file__).with_name("gpu_sample.json").read_text())
TEN_MINUTES, LEASE, START = 600, 900, 120


def lines(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def test_the_time_plan_adds_up():
    assert budget.SECONDS == {1: 360, 2: 330}
    assert sum(budget.SECONDS.values()) + START <= LEASE
    for stages in budget.CALLS.values():
        assert sum(stage.expected for stage in stages) <= sum(stage.given for stage in stages) <= TEN_MINUTES
        assert all(stage.expected <= stage.given for stage in stages)
        assert all(stage.limit <= stage.given for stage in stages if stage.name != "chosen")
    names = [stage.name for stage in budget.CALLS[1]]
    assert names == ["build", "machine", "compile", "chosen", "headline", "profile", "alternatives"]
    assert [stage.name for stage in budget.CALLS[2]][-4:] == ["headline", "tests", "sanitizer", "official"]
    plan = budget.time_plan()
    assert "call 1: 360 s given" in plan
    assert "headline      115 s given" in plan


def test_the_page_puts_figures_beside_goals():
    found = {row[0]: row[4] for row in lines(report.goals(SAMPLE["stages"]))}
    assert found["image, 30 steps"] == "125.000 ms"
    assert found["flow step, 1 image with guidance"] == "4.000 ms (without what was wrong)"
    assert found["16 images"].startswith("failed: OutOfMemoryError")
    assert found["VAE decode"] == "not measured"
    assert found["flow step beside the official eager code"] == "7.5 x"


def test_the_page_shows_what_was_measured_and_why_the_rest_was_not():
    page = report.markdown(SAMPLE)
    rows = lines(page)
    measured = ["flow step [1]", "1", "", "4.000 (3.900 to 5.000)", "12.000 (11.000 to 13.000)", "3.00", "1.50", "5.0"]
    assert measured in rows
    assert "[1] Measured without attention triton: o is off by 2 of 3, allowed 0.1." in page
    assert "1 choices of the plans are right at their shapes, 1 are wrong, 1 were not looked at: out of time." in page
    wrong = ["attention", "triton", "flow_step 1", "llm.0.attention", "q bf16[2, 576, 16, 128]"]
    assert [*wrong, "failed: o is off by 2 of 3, allowed 0.1; torch serves instead"] in rows
    assert next(row for row in rows if row[:1] == ["llm.*.gate_up (linear by torch)"])[3:] == ["30.0", "15.00", "3.0"]
    served = {row[3]: row[4] for row in rows if row[0] == "depthwise_norm, flow_step"}
    assert served == {
        "**cuda**": "8.00",
        "torch": "40.00 (launches included)",
        "other": "failed: y is off by 2 of 3, allowed 0.1",
    }
    assert "chosen: a process of it ended early, Alarm clock" in page
    assert "AssertionError: error 2, allowed 1" in page
    assert "tests/pipeline/test_gpu_graphs.py: stopped while it ran" in page
    assert "memcheck: no errors" in page
    assert "racecheck: NOT clean: 3 errors" in page
    assert ["step 1 compiled", "", "", "failed: out of time", ""] in rows
    assert not gpu.succeeded(SAMPLE["stages"])


FILE = {"passed": 3, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("stages", "good"),
    [
        ({"tests": {"files": {"a": FILE}}, "chosen": {"rows": {"a": {"error": 0.1}}}}, True),
        ({"tests": {"files": {"a": FILE}}, "sanitizer": {"absent": "not installed"}}, True),
        ({"tests": {"files": {"a": {**FILE, "passed": 0}}}}, False),
        ({"tests": {"files": {"a": {**FILE, "failed": 1}}}}, False),
        ({"tests": {"files": {"a": {"skipped_file": "out of time"}}}}, False),
        ({"headline": {"rows": {"a": {"skipped": "out of time"}}}}, False),
        ({"headline": {"rows": {"a": {"failed": "wrong"}}}}, False),
        ({"headline": {"not_run": "0 s are left for it"}}, False),
        ({"sanitizer": {"memcheck": {"ok": False}}}, False),
    ],
)
def test_success_is_all_that_was_asked_for(stages, good):
    assert gpu.succeeded(stages) is good


def test_call_2_learns_what_was_wrong_and_what_was_faster():
    lessons = learned.lessons(SAMPLE)
    assert lessons["suspects"] == [["attention", "triton"]]
    assert lessons["calls"] == [["attention", "triton", "01234567", "o is off by 2 of 3, allowed 0.1"]]
    name = "flashjanus.triton_kernels.scaled_matmul:GROUP"
    assert lessons["tuned"] == {name: {"value": 16, "why": "0.75 of the time of what is in force"}}
    assert lessons["slower"] == [["linear", "triton", "torch takes 0.50 of its time"]]
    before = scaled_matmul.GROUP
    try:
        learned.put_in_force(json.loads(json.dumps(lessons["tuned"])))
        assert scaled_matmul.GROUP == 16
    finally:
        scaled_matmul.GROUP = before
    page = report.learned({"learned": {"from": "x-call-1.json", **lessons}})
    assert f"`{name}` = 16" in page
    assert "linear not by triton" in page
    assert "attention by triton was wrong: looked at again" in page


def test_faults_of_call_1_hold_in_call_2_unless_they_are_gone():
    call = ["attention", "triton", "01234567", "wrong"]
    lessons = {"calls": [call], "whole": [["gelu", "cuda", "it ended"]], "slower": [["silu_mul", "triton", "slow"]]}
    whole = {("gelu", "cuda"): "it ended", ("silu_mul", "triton"): "slow"}
    assert learned.faults(lessons, {}) == Faults({tuple(call[:3]): "wrong"}, whole)
    about = {"op": "attention", "implementation": "triton"}
    right = {"rows": {"attention 01234567 triton": {**about, "error": 0.1}}}
    assert learned.faults(lessons, right) == Faults({}, whole)
    wrong = {"rows": {"attention 01234567 triton": {**about, "failed": "worse", "successor": "torch"}}}
    assert learned.faults(lessons, wrong).calls == {tuple(call[:3]): "worse"}
    assert learned.ended(lessons) == Faults({}, {("gelu", "cuda"): "it ended"})


def test_a_page_that_cannot_be_made_costs_no_findings(tmp_path):
    made = Book(tmp_path / "x.json", {"gpu": "none"})
    made.save()
    assert (
        tmp_path / "x.md"
    ).read_text() == "This page could not be made: KeyError('call'). The findings are in x.json.\n"
    assert json.loads((tmp_path / "x.json").read_text())["gpu"] == "none"


def test_an_alternative_that_failed_somewhere_or_was_not_timed_teaches_nothing():
    rows = json.loads(json.dumps(SAMPLE["stages"]["alternatives"]["rows"]))
    other = json.loads(json.dumps(rows["linear 01234567"]))
    other["choices"]["torch"] = {"failed": "wrong"}
    other["choices"]["triton, flashjanus.triton_kernels.scaled_matmul:GROUP=16"] = {"failed": "wrong"}
    stages = {"alternatives": {"rows": {**rows, "linear 89abcdef": other}}}
    lessons = learned.lessons({"stages": stages})
    assert lessons["slower"] == []
    assert lessons["tuned"] == {
        "flashjanus.triton_kernels.scaled_matmul:GROUP": {"value": 4, "why": "0.97 of the time of what is in force"}
    }


def event(cat: str, name: str, ts: float, dur: float, **args: int) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


TRACE = [
    event("user_annotation", "lead-in", -20, 10),
    event("user_annotation", "node step: llm.0.qkv (linear by torch)", 0, 10),
    event("user_annotation", "node step: llm.1.qkv (linear by torch)", 10, 10),
    event("user_annotation", "graph step", 30, 10),
    event("gpu_user_annotation", "node step: llm.0.qkv (linear by torch)", 100, 10),
    event("cuda_runtime", "cudaLaunchKernel", -15, 2, correlation=9),
    event("cuda_runtime", "cudaLaunchKernel", 1, 2, correlation=1),
    event("cuda_driver", "cuLaunchKernelEx", 12, 2, correlation=2),
    event("cuda_runtime", "cudaMemcpyAsync", 15, 2, correlation=3),
    event("cuda_runtime", "cudaGraphLaunch", 31, 2, correlation=4),
    event("kernel", "nvjet_hsh_128x152", 90, 5, correlation=9),
    event("kernel", "nvjet_hsh_128x152", 100, 5, correlation=1),
    event("kernel", "nvjet_hsh_128x152", 106, 5, correlation=2),
    event("gpu_memcpy", "Memcpy DtoD", 112, 1, correlation=3),
    event("kernel", "nvjet_hsh_128x152", 200, 4, correlation=4),
    event("gpu_memset", "Memset", 205, 1, correlation=4),
    event("kernel", "nvjet_hsh_128x152", 210, 4, correlation=4),
    event("gpu_memcpy", "Memcpy DtoD", 220, 4, correlation=4),
    event("cpu_op", "aten::mm", 1, 2),
    {"ph": "M", "name": "process_name"},
]


def test_kernels_get_the_nodes_that_launched_them_and_graphs_theirs_by_alignment():
    row = profile.kernels(reversed(TRACE))
    launched, captured = profile.of_program(row, "step")
    assert [(k.name, k.range) for k in launched] == [
        ("nvjet_hsh_128x152", "llm.0.qkv (linear by torch)"),
        ("nvjet_hsh_128x152", "llm.1.qkv (linear by torch)"),
        ("Memcpy DtoD", "llm.1.qkv (linear by torch)"),
    ]
    found = profile.summed(row, "step")
    assert (found["kernels"], found["busy_us"], found["span_us"]) == (4, 13, 24)
    assert (found["captured"], found["named"]) == (True, 0.75)
    lines = {(line["node"], line["kernel"]): (line["calls"], line["us"], line["gap"]) for line in found["table"]}
    assert lines == {
        ("llm.*.qkv (linear by torch)", "nvjet_hsh_128x152"): (2, 8, 1 + 6),
        ("llm.*.qkv (linear by torch)", "Memcpy DtoD"): (1, 4, 0),
        ("?", "Memset"): (1, 1, 4),
    }
    alone = profile.summed([k for k in row if k.range != "graph step"], "step")
    assert (alone["kernels"], alone["captured"], alone["named"]) == (3, False, 1.0)
    assert len(captured) == 4


def test_without_a_gpu_it_says_so_and_what_would_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(present, "gpu", lambda: "no NVIDIA driver is installed")
    assert gpu.main() == 2
    said = capsys.readouterr().out
    assert "No GPU to run on: no NVIDIA driver is installed" in said
    assert all(stage.name in said and stage.what in said for stages in budget.CALLS.values() for stage in stages)


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
