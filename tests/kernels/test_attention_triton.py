"""How attention of one query shares out its keys."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from flashjanus.triton_kernels import decode_attention


@pytest.mark.parametrize(
    ("rows", "heads", "keys", "splits"),
    [(1, 16, 1200, 18), (1, 16, 16384, 32), (2, 16, 4096, 16), (32, 16, 4096, 1), (64, 16, 4096, 1), (1, 16, 40, 1)],
)
def test_decoding_splits_keys_until_programs_suffice(rows: int, heads: int, keys: int, splits: int) -> None:
    assert decode_attention.splits_of(rows, heads, keys) == splits
