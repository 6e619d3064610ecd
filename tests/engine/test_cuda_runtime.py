"""Captured graphs, staged copies and refusals of the GPU runtime, with a stand-in for CUDA."""

from __future__ import annotations

import re
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flashjanus.engine.errors import DeviceError, OutOfMemoryError, PlanError
from flashjanus.engine.ir import Dim, Graph, TensorSpec
from flashjanus.engine.ops import all_ops
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.runtime import cuda
from flashjanus.engine.runtime.cuda import Gpu, Staging, TorchDriver, unusable
from flashjanus.engine.runtime.executor import Executor
from gpu_stand_in import StandInDriver

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


def weights() -> dict[str, torch.Tensor]:
    return {"w": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}


def executor(gpu: Gpu, rows: int = 3) -> Executor:
    return Executor(plan(rows), weights(), gpu=gpu)


def test_a_capture_is_warmed_up_and_leaves_nothing_behind() -> None:
    driver = StandInDriver()
    made = executor(Gpu(driver))
    made.capture()
    assert driver.asked("aside", "pool", "capture", "replay") == ["aside", "pool", "capture"]
    assert made.states["position"].tolist() == [0, 0, 0]
    made.capture()
    assert driver.asked("capture") == ["capture"]


def test_a_run_replays_what_was_uploaded() -> None:
    driver = StandInDriver()
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


def test_a_fetched_tensor_is_as_it_was() -> None:
    driver = StandInDriver()
    staging, source = Staging(Gpu(driver), 8), torch.tensor([1, 2], dtype=I32)
    first = staging.fetch(source)
    source += 10
    second = staging.fetch(source)
    assert driver.asked()[-2:] == ["record", "record"]
    assert first().tolist() == [1, 2]
    assert second().tolist() == [11, 12]
    assert driver.asked("synchronize") == ["synchronize"] * 2


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
        match=r"small \[R=3\]: expected to capture .* silu \(silu by torch\): .*capturing.*cuda_graphs=False",
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
        OutOfMemoryError, match=r"small \[R=3\]: .* for temporaries of its kernels; got 0\.00 of 4\.00 GiB"
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


class FakeStream:
    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


def test_the_driver_asks_torch_for_what_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of TorchDriver, on a torch.cuda made of fakes; that they do on a GPU what they say is owed."""
    current, entered = FakeStream(), []

    @contextmanager
    def entering(*args: Any, **kwargs: Any) -> Any:
        entered.append((args, kwargs))
        yield

    graph = SimpleNamespace(replay=lambda: entered.append("replay"))
    fakes = dict(
        mem_get_info=lambda device: (100, 1000),
        memory_reserved=lambda device: 50,
        memory_allocated=lambda device: 20,
        current_stream=lambda device: current,
        Stream=FakeStream,
        stream=entering,
        device=entering,
        graph=entering,
        CUDAGraph=lambda: graph,
        graph_pool_handle=lambda: "pool",
        Event=lambda: "event",
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "empty", lambda n, dtype, pin_memory: (n, dtype, pin_memory))
    gpu = cuda.open_gpu(CUDA)
    driver = gpu.driver
    assert isinstance(driver, TorchDriver)
    assert (gpu.device, driver.free_memory(), driver.pool(), driver.event()) == (CUDA, (130, 1000), "pool", "event")
    assert driver.pinned(7) == (7, torch.uint8, True)
    other = FakeStream()
    driver.wait(other)
    assert current.waited == [other]
    ran = []
    driver.aside(lambda: ran.append("aside"))
    (((side,), _),) = entered
    assert (side.waited, current.waited[1:]) == ([current], [side])
    entered.clear()
    replay = driver.capture(lambda: ran.append("captured"), "pool")
    assert ran == ["aside", "captured"]
    ((on, _), ((captured,), options)) = entered
    assert (on, captured) == ((CUDA,), graph)
    assert isinstance(options.pop("stream"), FakeStream)
    assert options == {"pool": "pool", "capture_error_mode": "thread_local"}
    replay()
    assert entered[-1] == "replay"
