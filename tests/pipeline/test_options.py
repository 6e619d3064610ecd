from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from flashjanus.errors import InputError
from flashjanus.sampling import checks, tokens
from flashjanus.sampling.options import TokenOptions
from flashjanus.sampling.tokens import Sampling, samplings


@pytest.mark.parametrize("value", [1, 1000, np.int64(7), np.uint8(7)])
def test_integers(value):
    got = checks.integer("n", value, 1, 1000)
    assert type(got) is int
    assert got == value


@pytest.mark.parametrize("value", [0, 1001, -1, 10**400, True, False, 1.0, 1.5, "1", None, torch.tensor(1), math.nan])
def test_what_is_no_integer(value):
    with pytest.raises(InputError, match=r"^n: expected an integer from 1 to 1000, got "):
        checks.integer("n", value, 1, 1000)


@pytest.mark.parametrize("value", [0, 0.0, 7.5, 10, np.float32(0.5), np.float64(2), Fraction(1, 2)])
def test_numbers(value):
    got = checks.number("x", value, 0.0, 10.0)
    assert type(got) is float
    assert got == value


@pytest.mark.parametrize(
    "value",
    [
        -1e-9,
        10.5,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        -(10**400),
        True,
        "1",
        None,
        1j,
        Decimal(1),
        torch.tensor(1.0),
    ],
)
def test_what_is_no_number(value):
    with pytest.raises(InputError, match=r"^x: expected a finite number from 0 to 10, got ") as error:
        checks.number("x", value, 0.0, 10.0)
    assert len(str(error.value)) < 150


def test_choices():
    assert checks.choice("kind", "b", ("a", "b")) == "b"
    for value in ("c", None, 1, ["a"]):
        with pytest.raises(InputError, match=r"^kind: expected one of 'a', 'b', got "):
            checks.choice("kind", value, ("a", "b"))


def test_one_value_or_one_per_row():
    assert checks.per_row("g", 2.0, 3) == [2.0] * 3
    assert checks.per_row("g", [1, 2, 3], 3) == checks.per_row("g", torch.tensor([1, 2, 3]), 3) == [1, 2, 3]
    assert checks.per_row("g", (4,), 1) == [4]
    with pytest.raises(InputError, match=r"^g: expected one value or 3, one per row, got 2"):
        checks.per_row("g", [1, 2], 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        (torch.float16, torch.float16),
    ],
)
def test_dtypes(value, expected):
    assert checks.dtype(value, torch.bfloat16) is expected


@pytest.mark.parametrize("value", ["float64", "", None, 16, torch.float64, ["float32"]])
def test_what_is_no_dtype(value):
    with pytest.raises(InputError, match=r"^dtype: expected 'auto', 'float32', 'bfloat16' or 'float16', got "):
        checks.dtype(value, torch.float32)


def test_tensors():
    x = torch.ones(2, 3, requires_grad=True)
    got = checks.tensor("x", x, (None, 3), (torch.float32,))
    assert torch.equal(got, x)
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "expected a torch.Tensor of shape (any, 3), got NoneType"),
        ([[1.0] * 3], "expected a torch.Tensor of shape (any, 3), got list"),
        (torch.ones(3), "expected shape (any, 3), got (3,)"),
        (torch.ones(2, 4), "expected shape (any, 3), got (2, 4)"),
        (torch.ones(0, 3), "expected shape (any, 3), got (0, 3)"),
        (torch.ones(2, 3).long(), "expected torch.float32, got torch.int64"),
        (torch.tensor([[1.0, math.inf, 0.0]]), "expected finite values, got NaN or inf"),
        (torch.tensor([[1.0, math.nan, 0.0]]), "expected finite values, got NaN or inf"),
    ],
)
def test_what_is_no_such_tensor(value, words):
    with pytest.raises(InputError) as error:
        checks.tensor("x", value, (None, 3), (torch.float32,))
    assert str(error.value).startswith(f"x: {words}")


def test_seeds():
    assert checks.first_seed(0, 5) == 0
    assert checks.first_seed(checks.MAX_SEED - 5, 5) == checks.MAX_SEED - 5
    assert 0 <= checks.first_seed(None, 1) < 2**32
    assert len({checks.first_seed(None, 1) for _ in range(4)}) > 1
    torch.Generator().manual_seed(checks.MAX_SEED)
    for seed in (-1, checks.MAX_SEED - 4, 2**64, 1.0, True, "1"):
        with pytest.raises(InputError, match=r"^seed: expected an integer from 0 to "):
            checks.first_seed(seed, 5)


def sampling_of(do_sample: bool, temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0, seed=None) -> Sampling:
    (only,) = samplings(TokenOptions.of(locals()).checked(), 1)
    return only


def test_greedy_sampling_keeps_the_penalty_only():
    sampling = sampling_of(False, 0.7, 0.5, 3, 1.2, 9)
    assert sampling == Sampling(temperature=0.0, repetition_penalty=1.2)
    assert sampling_of(True, 0.7, 0.5, 3, 1.2, 9) == Sampling(0.7, 3, 0.5, 1.2, 9)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1.5, 0.9, 5), (1.5, 5, 0.9)),
        ((None, None, None), (1.0, 0, 1.0)),
        ((1, 1, -1), (1.0, 0, 1.0)),
        ((1.0, 0, 0), (1.0, 0, tokens.LEAST_SHARE)),
        ((0, 0.5, 7), (0.0, 0, 1.0)),
        ((1e-5, 1.0, 0), (0.0, 0, 1.0)),
    ],
)
def test_how_the_next_token_is_chosen(given, expected):
    sampling = sampling_of(True, *given, 1.2, 3)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == expected
    assert sampling.repetition_penalty == 1.2
    assert sampling_of(False, *given, 1.2, 3) == Sampling(repetition_penalty=1.2)
