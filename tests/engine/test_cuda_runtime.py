"""Captured graphs, staged copies and refusals of the GPU runtime, with a stand-in for CUDA."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
import torch
from flashjanus.engine.device.capabilities import unusable
from flashjanus.engine.errors import DeviceError, OutOfMemoryError, PlanError
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import all_ops
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.runtime import cuda
from flashjanus.engine.runtime.cuda import Gpu, Staging
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import Dim, TensorSpec
from gpu_stand_in import StandInDriver
from torch.utils._python_dispatch import _disable_current_modes

R = Dim.symbol("R")
F32, I32 = torch.float32, torch.int32
CUDA = torch.device("cuda", 0)


def plan(rows: int = 3) -> Plan:
    """y = silu(x w), with a counter as state and a table on the device."""
    g = Graph("small", {"w": TensorSpec((4, 8), F32)})
    x, table = g.input("x", (R, 8), F32), g.input("table", (R, 4), F32, on_device=True)
    g.input("flags", (R,), I32)
    y = g.add("silu", g.add("linear", x, g.weight("w"), None))
    g.output("y", y)
    g.output("t", g.add("silu", table))
    g.add("advance", g.state("position", (R,), I32), g.state("slot", (R,), I32), None, None, None)
    return lower(g, {"R": rows}, CUDA, forced={name: ["torch"] for name in all_ops()})


@pytest.fixture
def driver() -> Iterator[StandInDriver]:
    """Whose copies land late."""
    made = StandInDriver()
    with made.copies:
        yield made


def weights() -> dict[str, torch.Tensor]:
    return {"w": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}


def executor(gpu: Gpu, rows: int = 3) -> Executor:
    return Executor(plan(rows), weights(), gpu=gpu)


def test_a_capture_is_warmed_up_and_leaves_nothing_behind() -> None:
    driver = StandInDriver()
    made = executor(Gpu(driver))
    walks, first = [], made.calls[0]
    made.calls[0] = lambda: (walks.append(driver.asked("aside", "capture")), first())[1]
    made.capture()
    assert driver.asked("aside", "pool", "capture", "replay") == ["aside", "pool", "capture"]
    assert walks == [["aside"], ["aside"], ["aside", "capture"]], "two runs aside, for what libraries make at first"
    assert made.states["position"].tolist() == [0, 0, 0]
    made.capture()
    assert driver.asked("capture") == ["capture"]


def test_a_run_replays_what_was_uploaded(driver: StandInDriver) -> None:
    made = executor(Gpu(driver))
    made.capture()
    assert made.host.keys() == {"x", "flags"}
    pointers = [t.data_ptr() for t in (*made.inputs.values(), *made.outputs.values(), *made.states.values())]
    for value in (1.0, 2.0):
        made.host["x"].fill_(value)
        made.upload()
        made.host["x"].fill_(torch.nan)  # may be written again at once
        made.run()
        torch.testing.assert_close(
            made.outputs["y"], torch.nn.functional.silu(torch.full((3, 8), value) @ weights()["w"].T)
        )
    assert made.states["slot"].tolist() == [2, 2, 2]
    assert driver.asked("replay") == ["replay"] * 2
    assert pointers == [t.data_ptr() for t in (*made.inputs.values(), *made.outputs.values(), *made.states.values())]


def test_inputs_cross_in_one_copy_of_one_block() -> None:
    driver = StandInDriver()
    made = executor(Gpu(driver))
    (block,) = {made.inputs[name].untyped_storage().data_ptr() for name in ("x", "flags")}
    assert made.inputs["table"].untyped_storage().data_ptr() != block
    assert all(made.inputs[name].data_ptr() % 256 == block % 256 for name in ("x", "flags"))
    sizes = [entry[1] for entry in driver.log if entry[0] == "pinned"]
    assert sizes == [512] * cuda.STAGES


def test_a_stage_is_written_again_only_when_its_copy_is_over() -> None:
    driver = StandInDriver()
    staging, to = Staging(Gpu(driver), 4), torch.zeros(4, dtype=torch.uint8)
    for value in range(5):
        driver.log.clear()
        staging.send(torch.full((4,), value, dtype=torch.uint8), to)
        (waited, event), (recorded, same) = driver.log
        assert (waited, recorded, event) == ("synchronize", "record", same)
        assert to.tolist() == [value] * 4


def test_copies_that_are_under_way_keep_what_was_sent(driver: StandInDriver) -> None:
    """To places of their own, which nothing uses: only events say when a stage may be written again."""
    staging, targets = Staging(Gpu(driver), 4), torch.zeros(5, 4, dtype=torch.uint8)
    with _disable_current_modes():  # or slicing would count as a use
        rows = list(targets)
    block = torch.zeros(4, dtype=torch.uint8)
    for value, to in enumerate(rows):
        block.fill_(value)
        staging.send(block, to)
        assert len(driver.copies.under_way()) == min(value + 1, cuda.STAGES), "nobody waits for the last copy"
    driver.synchronize()
    assert targets.tolist() == [[value] * 4 for value in range(5)]


def test_a_fetched_tensor_is_as_it_was(driver: StandInDriver) -> None:
    staging, source = Staging(Gpu(driver), 8), torch.tensor([1, 2], dtype=I32)
    first = staging.fetch(source)
    source += 10
    second = staging.fetch(source)
    assert driver.asked()[-2:] == ["record", "record"]
    got = first()
    assert got.tolist() == [1, 2]
    assert second().tolist() == [11, 12]
    assert driver.asked("synchronize") == ["synchronize"] * 2
    assert staging.fetch(source)().tolist() == [11, 12]
    assert got.tolist() == [1, 2], "the caller's own, not the stage that the third fetch writes"


def test_graphs_share_one_pool() -> None:
    driver = StandInDriver()
    gpu = Gpu(driver)
    for rows in (4, 2):
        executor(gpu, rows).capture()
    assert driver.asked("pool") == ["pool"]
    assert len({entry[2] for entry in driver.log if entry[0] == "capture"}) == 1


def test_without_graphs_a_run_walks() -> None:
    driver = StandInDriver()
    made = executor(Gpu(driver, graphs=False))
    made.capture()
    made.run()
    assert not driver.asked("capture", "aside", "replay")
    assert made.states["slot"].tolist() == [1, 1, 1]


def test_a_node_that_reads_on_the_host_fails_the_capture_by_name() -> None:
    made = executor(Gpu(StandInDriver()))

    def reads() -> None:
        bool(made.outputs["y"].sum() > 0)

    made.calls[1] = reads
    with pytest.raises(
        DeviceError,
        match=r"small \[R=3\]: could not be captured .* silu \(silu by torch\): .*capturing.*cuda_graphs=False",
    ):
        made.capture()


def test_memory_that_runs_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    driver = StandInDriver()
    driver.free = 5 << 20
    made = executor(Gpu(driver))
    monkeypatch.setattr(driver, "capture", none)
    with pytest.raises(
        OutOfMemoryError, match=r"small \[R=3\]: .* for temporaries of its kernels; 0\.00 of 4\.00 GiB are free"
    ):
        made.capture()
    made.calls[0] = none
    with pytest.raises(OutOfMemoryError, match="temporaries"):
        made.capture()
    monkeypatch.setattr(torch, "zeros", none)
    with pytest.raises(OutOfMemoryError, match=r"small \[R=3\]: .* GiB states"):
        executor(Gpu(driver))
    monkeypatch.undo()
    states = made.states
    monkeypatch.setattr(torch, "zeros", none)
    with pytest.raises(OutOfMemoryError, match=r"GiB intermediates, .* GiB inputs"):
        Executor(plan(), weights(), states, gpu=Gpu(driver))
    with pytest.raises(torch.OutOfMemoryError):  # nothing to add on a CPU
        Executor(lower(Graph("none"), {}), {})


def test_weights_elsewhere_are_refused() -> None:
    with pytest.raises(PlanError, match="weight 'w' expected on cpu, got meta"):
        Executor(plan(), {"w": torch.zeros(4, 8, device="meta")}, gpu=Gpu(StandInDriver()))


# What torch.cuda says


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (dict(version=None), "built without CUDA; install a CUDA build"),
        (dict(init="Found no NVIDIA driver on your system"), "torch cannot use CUDA 13.0 here: Found no NVIDIA driver"),
        (dict(init="The NVIDIA driver on your system is too old (found version 11040)"), "driver .* is too old"),
        (dict(count=0), "no CUDA device here"),
        (dict(count=1, index=3), "expected one of 1 CUDA devices, cuda:0 to cuda:0"),
        (dict(capability=(7, 5)), r"expected compute capability 8\.0 or later \(Ampere\), got 7\.5: Some GPU"),
        (dict(capability=(9, 0)), None),
        (dict(capability=(12, 0)), None),
    ],
)
def test_a_gpu_that_cannot_run_the_engine_is_told(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], message: str | None
) -> None:
    def init() -> None:
        if "init" in facts:
            raise RuntimeError(facts["init"])

    monkeypatch.setattr(torch.version, "cuda", facts.get("version", "13.0"))
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: facts.get("count", 1))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: facts.get("capability", (9, 0)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    reason = unusable(torch.device("cuda", facts.get("index", 0)))
    if message is None:
        assert reason is None
    else:
        assert reason is not None
        assert re.search(message, reason)


def test_runs_on_another_stream_wait_for_those_before() -> None:
    """Also in the middle of a lease: replays share the memory of their temporaries."""
    driver = StandInDriver()
    made = executor(Gpu(driver))
    made.capture()
    for stream in ("stream 1", "stream 1", "stream 0"):
        driver.on = stream
        made.upload()
        made.run()
    assert [entry[1:] for entry in driver.log if entry[0] == "wait"] == [
        ("stream 1", "stream 0"),
        ("stream 0", "stream 1"),
    ]


def test_one_thread_launches_at_a_time() -> None:
    """What a stream waits for is read and changed by one thread at a time, or a wait may be left out."""
    gpu, entered = Gpu(StandInDriver()), Event()

    def launch() -> None:
        with gpu.launching():
            entered.set()

    thread = Thread(target=launch)
    with gpu.launching():
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(60)
    thread.join()


def test_a_weight_that_the_caller_drops_stays() -> None:
    given = weights()
    g = Graph("kept", {"w": TensorSpec((4, 8), F32)})
    g.output("y", g.add("linear", g.input("x", (1, 8), F32), g.weight("w"), None))
    made = Executor(lower(g, {}), given)
    due = weights()["w"].sum(1)
    given.clear()
    gc.collect()
    made.inputs["x"].fill_(1)
    made.run()
    torch.testing.assert_close(made.outputs["y"][0], due)
