"""The attention rule against a mask written as a sentence, key by key, and a softmax over the visible keys alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import pytest
import torch
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.ops import attention, get_op
from flashjanus.engine.ops.attention_cases import visible
from flashjanus.engine.specs import TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st

OP = get_op("attention")


@dataclass
class Rule:
    """kv_start (B), kv_end (B, N), slots (B, N) over `keys` keys."""

    keys: int
    kv_start: list[int]
    kv_end: list[list[int]]
    slots: list[list[int]]

    def sees(self, b: int, i: int) -> list[int]:
        """The keys that query i of sequence b sees: a range, and its own."""
        own = self.slots[b][i]
        return sorted({*range(self.kv_start[b], self.kv_end[b][i]), own})

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor(t, dtype=torch.int32) for t in (self.kv_start, self.kv_end, self.slots))


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, scale: float) -> torch.Tensor:
    """Query by query, head by head, in float64; keys out of sight are not even read."""
    out = torch.full(q.shape, torch.nan, dtype=torch.float64)
    batch, queries, heads, _ = q.shape
    for b in range(batch):
        for i in range(queries):
            seen = rule.sees(b, i)
            for h in range(heads):
                g = h // (heads // k.shape[2])
                weights = (scale * k[b, seen, g].double() @ q[b, i, h].double()).softmax(0)
                out[b, i, h] = weights @ v[b, seen, g].double()
    return out


def poison_unseen(rule: Rule, *caches: torch.Tensor) -> None:
    """NaN in every key and value that no query of its sequence sees: a cache slot may hold anything."""
    for b in range(len(rule.kv_start)):
        seen = {j for i in range(len(rule.slots[b])) for j in rule.sees(b, i)}
        for cache in caches:
            cache[b, [j for j in range(rule.keys) if j not in seen]] = torch.nan


def check(rule: Rule, heads: int = 2, kv_heads: int = 1, head_dim: int = 8, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, queries = len(rule.kv_start), len(rule.slots[0])
    q = torch.randn(batch, queries, heads, head_dim, generator=generator)
    k, v = (torch.randn(batch, rule.keys, kv_heads, head_dim, generator=generator) for _ in range(2))
    poison_unseen(rule, k, v)
    scale = head_dim**-0.5
    due = expected(q, k, v, rule, scale)
    reference = OP.reference(q, k, v, *rule.tensors(), scale=scale)
    torch.testing.assert_close(reference.double(), due, rtol=1e-5, atol=1e-6)
    specs = [TensorSpec(tuple(t.shape), t.dtype) for t in (q, k, v, *rule.tensors())]
    for few in (100, 1):  # queries that the kernel for many leaves to the one for few
        for name, implementation in OP.implementations.items():
            with (
                patch.object(attention, "MANY_QUERIES", few + 1),
                patch.object(attention, "many_queries_are_slower", lambda: None),
            ):
                if implementation.refuses(torch.device("cpu"), specs, {"scale": scale}) is None:
                    out = torch.full_like(q, torch.nan)
                    implementation.run(q, k, v, *rule.tensors(), out, scale=scale)
                    torch.testing.assert_close(
                        out.double(), due, rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, name)
                    )


def test_causal_text() -> None:
    slots = [0, 1, 2, 3, 4]
    rule = Rule(5, [0], [[s + 1 for s in slots]], [slots])
    assert [rule.sees(0, i) for i in range(5)] == [list(range(i + 1)) for i in range(5)]
    check(rule)


def test_left_padding_hides_the_pads_of_each_row_and_a_pad_sees_itself() -> None:
    slots = [list(range(6))] * 3
    rule = Rule(6, [0, 2, 5], [[s + 1 for s in r] for r in slots], slots)
    assert rule.sees(1, 0) == [0]
    assert rule.sees(1, 3) == [2, 3]
    assert rule.sees(2, 5) == [5]
    check(rule, heads=4, kv_heads=4)


def test_prefix_only_tokens_see_the_prefix_and_themselves() -> None:
    rule = Rule(9, [1, 3], [[5, 5, 5, 5]] * 2, [[5, 6, 7, 8]] * 2)
    assert rule.sees(0, 2) == [1, 2, 3, 4, 7]
    check(rule, heads=4, kv_heads=2)


def test_causal_text_before_a_bidirectional_block() -> None:
    slots = list(range(8))
    rule = Rule(8, [0], [[1, 2, 3, 7, 7, 7, 7, 8]], [slots])  # tokens 3 to 6 are one image
    assert rule.sees(0, 3) == rule.sees(0, 6) == [0, 1, 2, 3, 4, 5, 6]
    assert rule.sees(0, 2) == [0, 1, 2]
    assert rule.sees(0, 7) == slots
    check(rule, heads=3, kv_heads=1)


def test_one_query_against_a_cache_whose_later_slots_are_unwritten() -> None:
    check(Rule(12, [2], [[7]], [[7]]), heads=2, kv_heads=2)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_gap_that_nobody_sees_may_hold_anything(rows: int) -> None:
    """Keys 2..4 lie between the prefix and the queries' own slots."""
    check(Rule(8, [0] * rows, [[2, 2]] * rows, [[5, 6]] * rows))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    keys = draw(st.integers(1, 9))
    queries = draw(st.integers(1, min(4, keys)))
    batch = draw(st.integers(1, 3))
    key, end = st.integers(0, keys - 1), st.integers(0, keys)
    ends = st.lists(end, min_size=queries, max_size=queries)
    slots = st.lists(key, min_size=queries, max_size=queries, unique=True)
    return Rule(
        keys,
        draw(st.lists(end, min_size=batch, max_size=batch)),
        [draw(ends) for _ in range(batch)],
        [draw(slots) for _ in range(batch)],
    )


@settings(max_examples=150, deadline=None)
@given(rule=rules(), heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), seed=st.integers(0, 3))
def test_any_ranges_and_slots(rule: Rule, heads: tuple[int, int], seed: int) -> None:
    check(rule, *heads, head_dim=4, seed=seed)


@settings(max_examples=100, deadline=None)
@given(rule=rules())
def test_the_mask_is_the_sentence(rule: Rule) -> None:
    mask = visible(*rule.tensors(), torch.arange(rule.keys))
    for b in range(len(rule.kv_start)):
        for i in range(len(rule.slots[b])):
            assert mask[b, i].nonzero().flatten().tolist() == rule.sees(b, i)


def test_query_heads_must_be_a_multiple_of_key_heads() -> None:
    f32 = torch.float32
    specs = [TensorSpec((1, 2, heads, 8), f32) for heads in (3, 2, 2)]
    with pytest.raises(SchemaError, match=r"attention.*multiple of key/value heads, got 3 and 2"):
        OP.schema.bind("attention", [*specs, None, None, None], {"scale": 1.0})
