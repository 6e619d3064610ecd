"""TorchDriver on a torch.cuda of fakes: streams, captures, exact convolutions."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flashjanus.engine.runtime import cuda
from flashjanus.engine.runtime.cuda import TorchDriver
from flashjanus.engine.specs import Dim

R = Dim.symbol("R")
F32, I32 = torch.float32, torch.int32

CUDA = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda made of fakes: `current` stream, contexts `entered`, `asked` for the rest."""
    fake = SimpleNamespace(current=FakeStream(), entered=[], asked=[], ends=None)

    def entering(name: str) -> Any:
        @contextmanager
        def context(*args: Any, **kwargs: Any) -> Any:
            fake.entered.append((name, args, kwargs))
            yield
            if name == "graph" and fake.ends is not None:
                raise fake.ends

        return context

    fakes = dict(
        mem_get_info=lambda device: (100, 1000),
        memory_reserved=lambda device: 50,
        memory_allocated=lambda device: 20,
        current_stream=lambda device: fake.current,
        Stream=FakeStream,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: fake.asked.append("replay")),
        graph_pool_handle=lambda: "pool",
        Event=lambda: "event",
        set_stream=lambda stream: fake.asked.append(("set_stream", stream)),
        synchronize=lambda device: fake.asked.append("synchronize"),
        empty_cache=lambda: fake.asked.append("empty_cache"),
        **{name: entering(name) for name in ("stream", "device", "graph")},
    )
    for name, made in fakes.items():
        monkeypatch.setattr(torch.cuda, name, made)
    monkeypatch.setattr(torch, "empty", lambda n, dtype, pin_memory: (n, dtype, pin_memory))
    monkeypatch.setattr(torch, "zeros", lambda n, device: fake.asked.append("zeros"))
    return fake


def test_the_driver_asks_torch_for_what_it_promises(fake_cuda: SimpleNamespace) -> None:
    """That fakes are asked; that a GPU then does what they say is owed."""
    gpu = cuda.open_gpu(CUDA)
    driver = gpu.driver
    assert isinstance(driver, TorchDriver)
    assert (gpu.device, driver.free_memory(), driver.event()) == (CUDA, (130, 1000), "event")
    assert driver.pinned(7) == (7, torch.uint8, True)
    other, ran = FakeStream(), []
    driver.wait(other)
    assert fake_cuda.current.waited == [other]
    driver.aside(lambda: ran.append("aside"))
    ((_, (side,), _),) = fake_cuda.entered
    assert (side.waited, fake_cuda.current.waited[1:]) == ([fake_cuda.current], [side])
    fake_cuda.entered.clear()
    replay = driver.capture(lambda: ran.append("captured"), "pool")
    ((_, on, _), (_, _, options)) = fake_cuda.entered
    assert (ran, on) == (["aside", "captured"], (CUDA,))
    capturing = options.pop("stream")
    assert capturing is not side
    assert options == {"pool": "pool", "capture_error_mode": "thread_local"}
    replay()
    driver.release()
    assert fake_cuda.asked == ["replay", "synchronize", "empty_cache"]
    assert driver.pool() == "pool"
    assert fake_cuda.asked[-1] == "zeros", "a graph that stays in the pool"
    assert fake_cuda.entered[-1][2]["stream"] is capturing, "or graphs would not share what it holds"


@pytest.mark.parametrize("before", [True, False])
def test_float32_convolutions_are_exact_on_the_gpu(
    fake_cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    def tf32() -> bool:
        newer = hasattr(torch.backends, "fp32_precision")  # since torch 2.9
        return torch.backends.cudnn.conv.fp32_precision == "tf32" if newer else torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    assert tf32() is before
    with TorchDriver(CUDA).current():
        assert not tf32()
    assert tf32() is before
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="switches of torch 2.9 and later")
def test_they_are_exact_where_all_of_torch_is_to_use_tf32(fake_cuda: SimpleNamespace) -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        with TorchDriver(CUDA).current():
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True


def test_a_failed_capture_keeps_nothing_of_what_it_ran(fake_cuda: SimpleNamespace) -> None:
    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    gc.disable()
    with suppress(RuntimeError):
        TorchDriver(CUDA).capture(fails, "pool")
    kept = weakref.ref(fails)
    del fails
    gone = kept() is None
    gc.enable()
    assert gone


def test_a_failed_capture_gives_its_own_reason_and_the_stream_back(fake_cuda: SimpleNamespace) -> None:
    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    driver = TorchDriver(CUDA)
    with pytest.raises(RuntimeError, match="not permitted"):
        driver.capture(fails, "pool")
    assert fake_cuda.asked == [("set_stream", fake_cuda.current)]
    fake_cuda.ends = RuntimeError("previous error during capture")
    with pytest.raises(RuntimeError, match="previous error"):
        driver.capture(lambda: None, "pool")


def test_a_warm_up_that_fails_is_waited_for(fake_cuda: SimpleNamespace) -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        TorchDriver(CUDA).aside(fails)
    assert len(fake_cuda.current.waited) == 1
