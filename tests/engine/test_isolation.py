"""Switches of the whole process: turned by the first thread that enters, turned back by the last that leaves."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch
from flashjanus.engine.runtime.isolation import EXACT_PRODUCTS, Switches, isolated

NEWER = hasattr(torch.backends, "fp32_precision")


@pytest.fixture
def medium() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_products_stay_exact_until_the_last_thread_leaves(medium: None) -> None:
    inside, left = Barrier(2), Barrier(2)

    def other() -> None:
        with EXACT_PRODUCTS:
            inside.wait()
            left.wait()

    thread = Thread(target=other)
    with EXACT_PRODUCTS:
        thread.start()
        inside.wait()
    assert torch.get_float32_matmul_precision() == "highest"
    left.wait()
    thread.join()
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not NEWER, reason="switches of torch 2.9 and later")
def test_newer_switches_are_turned_and_follow_their_family_afterward() -> None:
    convolutions = torch.backends.mkldnn.conv
    torch.backends.fp32_precision = "bf16"
    try:
        with isolated():
            assert (convolutions.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == ("ieee", "ieee")
        assert convolutions.fp32_precision == "bf16"
    finally:
        torch.backends.fp32_precision = "none"
    assert convolutions.fp32_precision == "none"
    convolutions.fp32_precision = "bf16"  # by itself
    with isolated():
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == "bf16"
    convolutions.fp32_precision = "none"


def test_what_was_turned_last_is_turned_back_first() -> None:
    order: list[int] = []
    with Switches(lambda: [lambda: order.append(1), lambda: order.append(2)]), isolated():
        assert order == []
    assert order == [2, 1]
