"""The tests of kernels tell right ones from wrong ones: copies with one fault each fail on their ops' cases."""

from __future__ import annotations

import shutil
from types import ModuleType

import fibers
import pytest
import torch
from fibers import CUDA, running_on
from flashjanus.engine.ops import get_op
from op_check import check, make_call, specs_of

pytest.importorskip("pybind11")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# kernel, op, what is right, what is wrong
FAULTS = {
    "a key too few": ("decode_attention", "attention", "min(p.kv_end[b], p.keys)", "min(p.kv_end[b] - 1, p.keys)"),
    "a missing barrier": (
        "depthwise_norm",
        "depthwise_norm",
        "__pipeline_wait_prior(0);\n        __syncthreads();",
        "__pipeline_wait_prior(0);",
    ),
    "another eps": ("depthwise_norm", "depthwise_norm", "+ p.eps", "+ 1e-5f"),
    "always the first of equal tokens": ("sample_token", "sample_token", ": ties;", ": 1;"),
    "a velocity that is not kept": ("flow_update", "flow_update", "&& now.keep != 0.0f", "&& false"),
    "sums of warps without a barrier": (
        "flow_update",
        "flow_update",
        "    __syncthreads();\n    for (int warp",
        "    for (int warp",
    ),
    "a block that ends before the others have read it": (
        "decode_attention",
        "attention",
        "    cluster_sync();  // no block's memory",
        "    // no block's memory",
    ),
    "a read before the wait": ("decode_attention", "attention", "    wait_for_inputs();\n", ""),
}


def faults(module: ModuleType, name: str) -> list[str]:
    """What the op's cases say against a module's kernel."""
    op, found = get_op(name), []
    for case in op.cases:
        for dtype in op.dtypes:
            call = make_call(op, case, dtype, False)
            with running_on(module, 90, backwards=dtype is torch.bfloat16):
                if op.implementations["cuda"].refuses(CUDA, specs_of(call), call.attrs):
                    continue
                try:
                    check(op, call, ["cuda"])
                except AssertionError as error:
                    found.append(str(error))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_copy_is_caught(fault: str) -> None:
    kernel, op, right, wrong = FAULTS[fault]
    text = (fibers.ROOT / f"csrc/cuda/{kernel}.cu").read_text()
    assert text.count(right) == 1, "the fault has to be made in one place: has the kernel changed?"
    assert faults(fibers.module({f"{kernel}.cu": text.replace(right, wrong)}), op)


@pytest.mark.parametrize("op", sorted({op for _, op, _, _ in FAULTS.values()}))
def test_the_kernels_as_they_are_pass_the_same_cases(op: str) -> None:
    assert faults(fibers.module(), op) == []
