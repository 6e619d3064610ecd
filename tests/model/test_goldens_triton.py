"""Agreement with recorded outputs of the official implementation, on Triton kernels in Triton's interpreter.

What the interpreter does in a minute: a guided flow step (the first of case c; further steps and the other cases give
the same kernels more rows and longer prompts), the understanding encoder, one picture of the VAE, and two steps of
decoding. Left to torch: the prefill in front of those, which gives a flow step's kernels a few more tokens, and with it
the golden of its logits. run_goldens_in_triton.py says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from interpreted import run_interpreted
from model.test_goldens import FP32

pytest.importorskip("triton")
PROGRAMS = ["flow_prepare", "flow_step", "encode_images", "decode_latents", "decode_step"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What run_goldens_in_triton.py says."""
    program = Path(__file__).with_name("run_goldens_in_triton.py")
    found: dict[str, Any] = run_interpreted(program, tmp_path_factory.mktemp("interpreter"))
    return found


@pytest.mark.parametrize("value", ["c.step0.v_cond", "c.step0.v_uncond", "c.step1.z", "features", "image"])
def test_golden(results: dict[str, Any], value: str) -> None:
    assert results["errors"][value] <= FP32


def test_greedy_tokens_of_the_left_padded_batch(results: dict[str, Any]) -> None:
    assert results["tokens"] == results["expected"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_triton_serves_every_op_that_it_can(results: dict[str, Any], program: str) -> None:
    served = results["ops"][program]
    assert served
    assert {op for op, nodes in served.items() if not nodes} == set()
