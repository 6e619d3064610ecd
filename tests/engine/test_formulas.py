"""What references and implementations share (rotation, unpatchify, row numbers, ...) against the formula itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from flashjanus.engine.ops import get_op
from flashjanus.engine.ops.depthwise_norm import depthwise
from flashjanus.engine.ops.flow_update import unpatchify
from flashjanus.engine.ops.residual_modulate import branched_row
from flashjanus.engine.ops.rope_kv_write import rotate, split
from hypothesis import given, settings
from hypothesis import strategies as st


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_rope_turns_the_halves_of_a_head_as_complex_numbers() -> None:
    """a + ib -> (a + ib) e^(i angle), a the first half, b the second: the half-rotation layout, not interleaved."""
    x = torch.randn(2, 3, 4, 10, generator=generator())
    angle = torch.randn(2, 3, 1, 5, generator=generator())
    turned = torch.complex(x[..., :5], x[..., 5:]) * torch.polar(torch.ones_like(angle), angle)
    table = torch.stack([angle.cos(), angle.sin()], dim=-2)
    torch.testing.assert_close(rotate(x, table), torch.cat([turned.real, turned.imag], dim=-1))


def test_qkv_holds_all_queries_then_all_keys_then_all_values() -> None:
    row = torch.arange(2 * 3 * (4 + 2 + 2) * 5).view(2, 3, 40)
    q, k, v = split(row, heads=4, kv_heads=2)
    assert torch.equal(q[1, 2, 3], row[1, 2, 15:20])
    assert torch.equal(k[1, 2, 1], row[1, 2, 25:30])
    assert torch.equal(v[1, 2, 0], row[1, 2, 30:35])


def test_unpatchify_is_pixel_shuffle() -> None:
    v = torch.randn(2, 3, 5, 16, generator=generator())
    assert torch.equal(unpatchify(v, 4), F.pixel_shuffle(v.permute(0, 3, 1, 2), 2))
    assert torch.equal(unpatchify(v, 1), F.pixel_shuffle(v.permute(0, 3, 1, 2), 4))


@pytest.mark.parametrize(
    ("branches", "images", "rows"), [(3, 3, [0, 1, 2]), (5, 3, [0, 1, 2, 0, 1]), (2, 1, [0, 0]), (0, 0, [])]
)
def test_branch_rows_belong_to_the_first_images_in_order(branches: int, images: int, rows: list[int]) -> None:
    assert branched_row(branches, images, torch.device("cpu")).tolist() == rows


def test_depthwise_weights_are_row_column_channel() -> None:
    x, bias = torch.randn(1, 4, 5, 3, generator=generator()), torch.randn(3, generator=generator())
    weight = torch.randn(7, 7, 3, generator=generator())
    padded = F.pad(x, (0, 0, 3, 3, 3, 3))
    due = torch.stack(
        [(padded[0, i : i + 7, j : j + 7] * weight).sum((0, 1)) + bias for i in range(4) for j in range(5)]
    )
    torch.testing.assert_close(depthwise(x, weight, bias)[0].reshape(20, 3), due)


def test_time_embedding_is_cosines_then_sines_of_falling_frequencies() -> None:
    out = get_op("time_embedding").reference(torch.tensor([[333.25]]), C=6, dtype=torch.float32)
    frequencies = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    due = [f(333.25 * w) for f in (math.cos, math.sin) for w in frequencies]
    torch.testing.assert_close(out[0, 0], torch.tensor(due), rtol=0, atol=1e-4)


def test_patchify_and_a_linear_are_the_patch_convolution() -> None:
    x, weight = torch.randn(2, 3, 8, 8, generator=generator()), torch.randn(5, 3, 4, 4, generator=generator())
    patches = get_op("patchify").reference(x, patch=4, dtype=torch.float32, N=4, E=48)
    torch.testing.assert_close(patches @ weight.view(5, 48).T, F.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2))


def test_grn_is_the_published_formula() -> None:
    y, weight, bias = torch.randn(2, 6, 8, generator=generator()), *torch.randn(2, 8, generator=generator())
    g = y.norm(dim=1, keepdim=True)
    due = weight * (y * (g / (g.mean(-1, keepdim=True) + 1e-6))) + bias + y
    torch.testing.assert_close(get_op("grn_apply").reference(y, y.square().sum(1), weight, bias), due)


# Logits of five tokens; the probabilities at temperature 1 are about .57, .21, .13, .08, .01.
LOGITS = torch.tensor([0.5, 2.0, -2.0, 1.0, 0.0])


def shares(draws: int = 2000, **settings: float) -> torch.Tensor:
    """How often each token is drawn when the uniform numbers lie evenly over [0, 1)."""

    def column(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((draws,), value, dtype=dtype)

    uniforms = ((torch.arange(draws) + 0.5) / draws)[:, None]
    seen = torch.zeros(draws, 5, dtype=torch.uint8)
    seen[:, 1] = 1
    token, step = column(-1, torch.int32), column(0, torch.int32)
    get_op("sample_token").implementations["torch"].run(
        LOGITS.expand(draws, 5),
        column(settings.get("temperature", 1.0)),
        column(settings.get("top_k", 0), torch.int32),
        column(settings.get("top_p", 1.0)),
        column(settings.get("penalty", 1.0)),
        uniforms,
        seen,
        token,
        step,
    )
    assert step.unique().tolist() == [1]
    assert bool(seen.gather(1, token[:, None].long()).all())
    return torch.bincount(token, minlength=5) / draws


def probabilities(keep: list[int] | None = None, temperature: float = 1.0, penalty: float = 1.0) -> torch.Tensor:
    logits = LOGITS.clone()
    logits[1] /= penalty
    p = (logits / temperature).softmax(0)
    if keep is not None:
        p[[i for i in range(5) if i not in keep]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({}, probabilities()),
        ({"temperature": 2.5}, probabilities(temperature=2.5)),
        ({"penalty": 3.0}, probabilities(penalty=3.0)),
        ({"top_k": 2}, probabilities(keep=[1, 3])),
        ({"top_p": 0.75}, probabilities(keep=[1, 3])),  # .57 + .21 reach it
        ({"top_p": 0.8}, probabilities(keep=[1, 3, 0])),  # .57 + .21 do not
        ({"top_p": 0.0}, probabilities(keep=[1])),
        ({"top_k": 1, "temperature": 9.0}, probabilities(keep=[1])),
        ({"temperature": 0.0, "penalty": 9.0}, torch.eye(5)[3]),  # 2 / 9 < 1: the penalty reaches the argmax
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability(settings: dict[str, float], due: torch.Tensor) -> None:
    """Inverse transform over an even grid: exact up to one draw at either end of a token's interval."""
    assert float((shares(2000, **settings) - due).abs().max()) <= 2 / 2000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), vocab=st.integers(1, 40), step=st.integers(0, 4))
def test_sampling_meets_its_reference_on_any_case(seed: int, rows: int, vocab: int, step: int) -> None:
    """Also past the end of the uniform numbers, of which an example has three a row."""
    op = get_op("sample_token")
    call = op.example(torch.Generator().manual_seed(seed), torch.float32, rows=rows, vocab=vocab)
    call.args[-1].fill_(step)
    ours, due = ([t.clone() for t in call.args] for _ in range(2))
    op.implementations["torch"].run(*ours)
    op.reference(*due)
    for name, a, b in zip([arg.name for arg in op.schema.inputs], ours, due, strict=True):
        assert torch.equal(a, b), name
