"""Tensors alive at the same node never share a byte, whatever their sizes and lives."""

from __future__ import annotations

import pytest
from flashjanus.engine.plan import Lifetime, assign
from flashjanus.engine.plan.memory import ALIGNMENT, aligned
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    spans = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
    sizes = st.integers(0, 1000)
    return [
        Lifetime(f"t{i}", draw(sizes), *span) for i, span in enumerate(draw(st.lists(spans, min_size=0, max_size=14)))
    ]


@settings(max_examples=300)
@given(lives=lifetimes(), guard=st.sampled_from([0, 1, 64, 100]))
def test_lives_that_overlap_share_no_byte(lives: list[Lifetime], guard: int) -> None:
    offsets, size = assign(lives, guard)
    assert offsets.keys() == {life.name for life in lives}
    for i, a in enumerate(lives):
        start = offsets[a.name]
        assert start % ALIGNMENT == 0
        assert start >= 0
        assert start + a.nbytes + guard <= size
        for b in lives[:i]:
            if a.first <= b.last and b.first <= a.last:
                ends = start + a.nbytes + guard, offsets[b.name] + b.nbytes + guard
                apart = ends[0] <= offsets[b.name] or ends[1] <= start
                assert apart or not (a.nbytes + guard and b.nbytes + guard)
    needs = [(life, aligned(life.nbytes + guard)) for life in lives]
    alive = [sum(need for life, need in needs if life.first <= node <= life.last) for node in range(10)]
    assert max(alive, default=0) <= size <= sum(need for _, need in needs)


@given(lifetimes())
def test_the_order_of_the_list_does_not_matter(lives: list[Lifetime]) -> None:
    assert assign(lives) == assign(lives[::-1])


def test_a_chain_needs_two_buffers() -> None:
    """Each node reads the one before: input and output are alive together, nothing else is."""
    lives = [Lifetime(f"t{i}", 256, i, i + 1) for i in range(10)]
    assert assign(lives)[1] == 512


def test_a_tensor_that_ends_where_another_begins_keeps_its_bytes() -> None:
    """A node's output may not overwrite its input."""
    offsets, size = assign([Lifetime("x", 64, 0, 1), Lifetime("y", 64, 1, 2)])
    assert offsets["x"] != offsets["y"]
    assert size == 128


def test_lives_apart_share() -> None:
    offsets, size = assign([Lifetime("x", 100, 0, 1), Lifetime("y", 128, 2, 3)])
    assert offsets == {"x": 0, "y": 0}
    assert size == 128


def test_a_small_tensor_fits_into_the_gap_that_a_dead_one_left() -> None:
    lives = [Lifetime("a", 256, 0, 9), Lifetime("b", 192, 0, 1), Lifetime("c", 128, 0, 9), Lifetime("d", 64, 2, 9)]
    offsets, size = assign(lives)
    assert offsets["b"] == offsets["d"] == 256
    assert size == 256 + 192 + 128


@pytest.mark.parametrize(("nbytes", "due"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_alignment(nbytes: int, due: int) -> None:
    assert aligned(nbytes) == due
