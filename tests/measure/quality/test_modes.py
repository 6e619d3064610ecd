"""Modes: the registry, and those written on the command line."""

from __future__ import annotations

import pytest
from flashjanus.errors import InputError
from flashjanus.measure.quality.modes import EXACT, REGISTRY, Mode, modes, parse_mode, parse_value


@pytest.mark.parametrize("name", REGISTRY)
def test_every_mode_of_the_registry_is_known_to_the_model(name: str) -> None:
    (*_, mode) = modes(name, [])
    assert mode.name == name
    assert {**mode.loading, **mode.sampling} == REGISTRY[name]


def test_the_exact_mode_comes_first_and_once() -> None:
    assert [mode.name for mode in modes(f"euler-10,{EXACT},euler-20", ["mine: num_inference_steps=3"])] == [
        EXACT,
        "euler-10",
        "euler-20",
        "mine",
    ]
    assert modes(None, []) == [Mode(EXACT)]


def test_options_go_where_they_belong() -> None:
    mode = parse_mode("a.b-2 : dtype=bfloat16, num_inference_steps=12,guidance_scale=1.5, best_of=2, accept_above=.9")
    assert mode.name == "a.b-2"
    assert mode.loading == {"dtype": "bfloat16"}
    assert mode.sampling == {"num_inference_steps": 12, "guidance_scale": 1.5, "best_of": 2, "accept_above": 0.9}
    assert mode.flowing == {"num_inference_steps": 12, "guidance_scale": 1.5}
    assert str(Mode("x", {"dtype": "float32"}, {"best_of": 2})) == "dtype=float32, best_of=2"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("ab2", "ab2"),
        ("0.1:1", (0.1, 1)),
        ("1:2:x", (1, 2, "x")),
    ],
)
def test_values(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected 'NAME: option=value"),
        ("a:", "expected 'NAME: option=value"),
        ("a: steps", "expected 'NAME: option=value"),
        (": best_of=2", "expected 'NAME: option=value"),
        ("a b: best_of=2", "expected 'NAME: option=value"),
        ("a: best_of=2,", "expected 'NAME: option=value"),
        ("a: best_of=2, best_of=3", "every option once, got 'best_of' again"),
        ("a: steps=3", "num_inference_steps"),
        ("a: steps=3", "got 'steps'"),
        ("a: seed=3", "got 'seed'"),
        ("a: output_type=pt", "got 'output_type'"),
        ("a: state_dict=3", "got 'state_dict'"),
        ("a: generator=3", "got 'generator'"),
    ],
)
def test_what_is_no_mode(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_mode(text)
    assert words in str(error.value)


def test_names_that_are_unknown_or_taken() -> None:
    with pytest.raises(InputError, match="got 'euler-7'; define others"):
        modes("euler-7", [])
    with pytest.raises(InputError, match="a unique name"):
        modes("euler-10", ["euler-10: best_of=2"])
    with pytest.raises(InputError, match="a unique name"):
        modes(None, ["exact: best_of=2"])
