"""Signatures, checks and JSON schemas say the same as the dataclasses of options."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.sampling.fields import json_schema, options_of
from flashjanus.sampling.options import PRESETS, SAMPLING, USUAL, FlowOptions, ImageOptions, TokenOptions
from flashjanus.sampling.schedule import Sampler
from flashjanus.sampling.tokens import Sampling, samplings

IMAGE, TOKENS = ({field.name: field.default for field in fields(kind)} for kind in (ImageOptions, TokenOptions))
CASES = [(kind, name) for kind in (ImageOptions, TokenOptions) for name in json_schema(kind)["properties"]]


@pytest.mark.parametrize(
    ("method", "others", "options"),
    [
        (JanusFlow.generate_image, {"prompt"}, IMAGE),
        (
            JanusFlow.sample_latents,
            {"input_ids", "noise", "trace", "adapter"},
            {name: IMAGE[name] for name in SAMPLING},
        ),
        (JanusFlow.chat, {"messages", "stream"}, TOKENS),
        (
            JanusFlow.generate_ids,
            {"input_ids", "attention_mask", "pixel_values", "eos_token_id", "image_tokens"},
            {name: value for name, value in TOKENS.items() if name not in ("stop", "stop_strings")},
        ),
    ],
)
def test_signatures_have_the_names_and_defaults(method, others, options) -> None:
    parameters = {name: one.default for name, one in inspect.signature(method).parameters.items()}
    assert parameters.keys() == {"self", *others, *options}
    assert {name: parameters[name] for name in options} == options


@pytest.mark.parametrize(("method", "options"), [(JanusFlow.generate_image, IMAGE), (JanusFlow.chat, TOKENS)])
def test_docstrings_name_every_option(method, options) -> None:
    words = set(re.findall(r"\w+", method.__doc__))
    assert options.keys() <= words


def test_options_are_given_by_name_and_stay() -> None:
    for kind, name in ((ImageOptions, "seed"), (TokenOptions, "seed"), (FlowOptions, "solver")):
        with pytest.raises(TypeError, match="positional"):
            kind(1)
        with pytest.raises(FrozenInstanceError):
            setattr(kind(), name, 1)
    with pytest.raises(TypeError, match="steps"):
        ImageOptions(steps=3)


def test_a_samplers_fields_are_the_options_of_the_flow() -> None:
    official = Sampler(30, 2.0, "euler", 1.0, (0.0, 1.0), 0.0, 1, 1)
    assert Sampler() == official
    assert hash(Sampler()) == hash(official)
    assert asdict(Sampler()) == USUAL
    assert {*USUAL, "preset"} == set(SAMPLING)
    assert set(SAMPLING) < IMAGE.keys()
    assert Sampler(7, solver="ab2") == Sampler(solver="ab2", num_inference_steps=7)
    with pytest.raises(ValueError, match="longer"):
        Sampler(*range(9))
    with pytest.raises(TypeError, match="steps"):
        Sampler(steps=3)


def checked(kind, name: str, value: object) -> object:
    given = dict(do_sample=True) if kind is TokenOptions else {}
    return getattr(kind(**{**given, name: value}).checked(), name)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_the_schema_allows_is_what_is_allowed(kind, name: str) -> None:
    """Bounds, choices and None; what depends on the rest of a request is checked with it."""
    found, option = json_schema(kind)["properties"][name], options_of(kind)[name]
    types = found["type"] if isinstance(found["type"], list) else [found["type"]]
    assert checked(kind, name, found["default"]) == found["default"] == getattr(kind(), name)
    if option.late or option.kind is bool:
        return
    accepted, refused = [None] * ("null" in types), [None] * ("null" not in types) + [object()]
    if "enum" in found:
        accepted, refused = [*accepted, *found["enum"]], [*refused, "no such"]
    if "integer" in types or "number" in types:
        low, high = found["minimum"], found["maximum"]
        down, up = (low - 1, high + 1) if "integer" in types else (math.nextafter(low, -9), math.nextafter(high, 1e9))
        accepted, refused = [*accepted, low, high], [*refused, down, up, "1", math.nan]
    if "minItems" in found and "maxItems" in found:
        low, high = found["items"]["minimum"], found["items"]["maximum"]
        accepted, refused = [*accepted, (low, high)], [*refused, (low,), (low, high, high), (low, high + 1)]
    if found.get("items", {}).get("type") == "string":
        accepted, refused = [*accepted, ("a", "b")], [*refused, "", ["a", ""], [1]]
    for value in accepted:
        assert checked(kind, name, value) == value
    for value in refused:
        with pytest.raises(InputError, match=f"^{name}: expected .*, got "):
            checked(kind, name, value)


def test_values_come_in_their_final_types() -> None:
    got = ImageOptions(guidance_scale=3, guidance_interval=[0, 1], step_cache=[0, 0.5]).checked()
    assert (type(got.guidance_scale), got.guidance_interval, got.step_cache) == (float, (0.0, 1.0), (0.0, 0.5))
    assert TokenOptions(stop="a", stop_strings=["b", "a"]).checked().stops == ("a", "b")
    assert TokenOptions().checked().stops == ()


def test_what_only_matters_for_sampling_is_not_looked_at_without() -> None:
    odd = TokenOptions(temperature=-1.0, top_p=2.0, top_k=-5, seed=3)
    assert samplings(odd.checked(), 2) == [Sampling()] * 2
    with pytest.raises(InputError, match="repetition_penalty: expected"):
        TokenOptions(repetition_penalty=0).checked()


def test_each_row_samples_from_a_seed_of_its_own() -> None:
    rows = samplings(TokenOptions(do_sample=True, temperature=None, top_k=-1, seed=7).checked(), 3)
    assert rows == [Sampling(1.0, 0, 1.0, 1.0, seed) for seed in (7, 8, 9)]
    with pytest.raises(InputError, match=r"^seed: expected an integer from 0 to "):
        samplings(TokenOptions(seed=2**63 - 2).checked(), 3)


def test_the_schema_of_an_image() -> None:
    schema = json_schema(ImageOptions)
    json.dumps(schema, allow_nan=False)
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    found = schema["properties"]
    assert found.keys() == IMAGE.keys() - {"generator", "latents", "callback_on_step_end"}
    assert found["num_inference_steps"] == {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 1000,
        "description": "steps of the solver; an integer from 1 to 1000 (exact: 30; balanced: 20; fast: 16)",
        "default": None,
    }
    assert found["solver"]["enum"] == ["euler", "ab2", None]
    assert found["preset"]["enum"] == list(PRESETS)
    interval = found["guidance_interval"]
    assert interval["type"] == ["array", "null"]
    assert (interval["minItems"], interval["maxItems"]) == (2, 2)
    assert interval["items"] == {"type": "number", "minimum": 0.0, "maximum": 1.0}
    assert found["step_cache"]["type"] == ["integer", "array", "null"]
    assert found["seed"]["items"] == {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}


def test_the_schema_of_an_answer() -> None:
    found = json_schema(TokenOptions)["properties"]
    assert found.keys() == TOKENS.keys()
    assert found["max_new_tokens"]["description"] == "longest answer; an integer from 1 to 2147483647 (default: 512)"
    assert found["do_sample"]["type"] == "boolean"
    assert found["do_sample"]["default"] is False
    assert found["stop"]["type"] == ["string", "array", "null"]
    assert found["stop"]["items"] == {"type": "string", "minLength": 1}
