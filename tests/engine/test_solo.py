"""Calls of torch's that stay on one thread where other work presses on the cores: only where the bits are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.device import native
from flashjanus.engine.ops import get_op
from flashjanus.engine.runtime.solo import SMALL_FLOPS, Solo, solo


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def call_with(*values: Callable[[int], float]) -> tuple[Solo, torch.Tensor, list[int]]:
    """A call that writes values[k](threads) where it is made for the k-th time, and the threads that it saw."""
    y, seen, left = torch.zeros(4), list[int](), list(values)

    def run() -> None:
        seen.append(torch.get_num_threads())
        y.fill_((left.pop(0) if len(left) > 1 else left[0])(seen[-1]))

    return Solo(run, [y]), y, seen


def test_what_gives_the_same_bits_stays_on_one_thread() -> None:
    call, y, seen = call_with(lambda threads: 5.0)
    for _ in range(3):
        call()
        assert y.tolist() == [5.0] * 4
    assert seen == [3, 1, 1, 1]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("value", [float, lambda threads: float("nan") if threads == 1 else 1.0])
def test_what_gives_other_bits_keeps_its_threads(value: Callable[[int], float]) -> None:
    call, y, seen = call_with(value)
    for _ in range(3):
        call()
        assert y.tolist() == [value(3)] * 4
    assert seen == [3, 1, 3, 3]


def test_zeros_decide_nothing() -> None:
    call, y, seen = call_with(lambda threads: 0.0, float)
    call()
    assert (call.same, seen) == (None, [3])
    call()
    assert (call.same, seen, y.tolist()) == (False, [3, 3, 1], [3.0] * 4)


def test_what_fails_gives_the_threads_back() -> None:
    call = Solo(lambda: 1 / 0, [])  # type: ignore[arg-type, return-value]
    call.same = True
    with pytest.raises(ZeroDivisionError):
        call()
    assert torch.get_num_threads() == 3


def test_only_what_is_small_and_may_be_repeated() -> None:
    def node(op: str = "linear", name: str = "torch", flops: float = 1.0) -> Any:
        return SimpleNamespace(op=op, implementation=get_op(op).implementations[name], flops=flops, nbytes=1)

    def run() -> None: ...

    memory = torch.zeros(8)
    x, y = memory[:4], memory[4:]
    assert isinstance(solo(node(), run, [x], [y]), Solo)
    for it, inputs in (
        (node(flops=2 * SMALL_FLOPS), [x]),
        (node("rope_kv_write"), [x]),
        (node("rms_norm", "native"), [x]),
        (node(), [memory[:5]]),
        (node(), [memory[::7]]),
    ):
        assert solo(it, run, inputs, [y]) is run


@pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_picture_is_the_same_beside_others(dtype: str) -> None:
    model = JanusFlow.from_pretrained("shapes", dtype=dtype)
    force = native._module().force_teams
    pictures = []
    try:
        for press in (0, 1, 1, 0):
            force(press=press)
            assert native.pressed() == bool(press)
            pictures.append(model.generate_image("a star", num_inference_steps=2, seed=1, output_type="pt").images)
    finally:
        force()
    assert all(torch.equal(it, pictures[0]) for it in pictures)
