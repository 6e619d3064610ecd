"""What the attention kernels must be made of on the chips that they are tuned for, and how work is shared out."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")
from flashjanus.triton_kernels import attention, decode_attention
from kernels.test_triton_compiled import compiled, own_cache  # noqa: F401  (a fixture that is used by itself)


@pytest.mark.parametrize(("chip", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma")])
def test_bf16_attention_runs_on_tensor_cores(chip: int, instruction: str) -> None:
    """Both products, in both loops, of every production form; operands arrive by asynchronous copies."""
    forms = [variant for variant in attention.variants(chip) if variant.name.startswith("bf16")]
    assert {variant.constants["HEAD"] for variant in forms} == {64, 128}
    for variant in forms:
        ptx = compiled(variant, chip).asm["ptx"]
        assert len(re.findall(re.escape(instruction), ptx)) >= 4
        assert "cp.async" in ptx


def test_float32_attention_multiplies_in_float32() -> None:
    (variant, *_) = [v for v in attention.variants(90) if v.name == "fp32-64"]
    assert not re.search(r"tf32|mma", compiled(variant, 90).asm["ptx"])


@pytest.mark.parametrize(
    ("rows", "heads", "keys", "splits"),
    [(1, 16, 1200, 18), (1, 16, 16384, 32), (2, 16, 4096, 16), (32, 16, 4096, 1), (64, 16, 4096, 1), (1, 16, 40, 1)],
)
def test_decoding_splits_keys_until_programs_suffice(rows: int, heads: int, keys: int, splits: int) -> None:
    assert decode_attention.splits_of(rows, heads, keys) == splits
