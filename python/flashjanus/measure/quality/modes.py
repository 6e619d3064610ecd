"""Modes: named ways to run a model, each a set of options for loading and for drawing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError
from flashjanus.sampling.fields import options_of
from flashjanus.sampling.options import SAMPLING, ImageOptions

EXACT = "exact"
"""The mode without options, which all others are compared with."""
REGISTRY: Mapping[str, Mapping[str, Any]] = {
    EXACT: {},
    "euler-20": {"num_inference_steps": 20},
    "euler-15": {"num_inference_steps": 15},
    "euler-10": {"num_inference_steps": 10},
    "euler-100": {"num_inference_steps": 100},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "fp8": {"quantization": "fp8"},
    "official": {"dtype": "bfloat16", "numerics": "official"},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
    "ab2-16": {"solver": "ab2", "num_inference_steps": 16},
    "best-of-2": {"best_of": 2},
    "fast-best-of-2": {"preset": "fast", "best_of": 2},
    "fast-best-of-4": {"preset": "fast", "best_of": 4},
}
"""Modes by name: options of `JanusFlow.from_pretrained` and of `JanusFlow.generate_image`."""
_NAME = re.compile(r"[\w.+-]+")
_OF_THE_MODEL = {"config", "state_dict", "vae_config", "vae_state_dict", "tokenizer", "device"}


@dataclass(frozen=True)
class Mode:
    """`loading`: options for loading the model; `sampling`: options for drawing images."""

    name: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(name: str, options: Mapping[str, Any]) -> Mode:
        """Raises InputError for an option that is for neither loading nor drawing."""
        loading = set(inspect.signature(JanusFlow.from_state_dict).parameters) - _OF_THE_MODEL
        sampling = {*SAMPLING, *options_of(ImageOptions, "choosing")}
        for option in options:
            if option not in loading | sampling:
                raise InputError(
                    f"mode {name}: expected options of loading ({', '.join(sorted(loading))}) or of drawing "
                    f"({', '.join(sorted(sampling))}), got {option!r}"
                )
        return Mode(
            name,
            {option: value for option, value in options.items() if option in loading},
            {option: value for option, value in options.items() if option in sampling},
        )

    @property
    def flowing(self) -> dict[str, Any]:
        """`sampling` as options of `sample_latents`, without those that choose among finished images."""
        choosing = options_of(ImageOptions, "choosing")
        return {option: value for option, value in self.sampling.items() if option not in choosing}

    def __str__(self) -> str:
        return ", ".join(f"{option}={value}" for option, value in {**self.loading, **self.sampling}.items())


def modes(names: str | None, written: Sequence[str]) -> list[Mode]:
    """EXACT, then the modes named from the registry ("a,b"), then those written out, in this order.

    Raises InputError.
    """
    found = {EXACT: Mode(EXACT)}
    for name in names.split(",") if names else ():
        if name not in REGISTRY:
            raise InputError(f"modes: expected some of {', '.join(REGISTRY)}, got {name!r}; define others with --mode")
        found[name] = Mode.of(name, REGISTRY[name])
    for text in written:
        mode = parse_mode(text)
        if mode.name in found:
            raise InputError(f"mode {mode.name}: expected a unique name, got one that is taken")
        found[mode.name] = mode
    return list(found.values())


def parse_mode(text: str) -> Mode:
    """The mode of "NAME: option=value, option=value". Raises InputError."""
    name, colon, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    if not (_NAME.fullmatch(name.strip()) and colon and all(key.strip() and sign for key, sign, _ in pairs)):
        raise InputError(f"mode: expected 'NAME: option=value, option=value', got {text!r:.80}")
    options: dict[str, Any] = {}
    for key, _, value in pairs:
        if key.strip() in options:
            raise InputError(f"mode {name.strip()}: expected every option once, got {key.strip()!r} again")
        options[key.strip()] = parse_value(value.strip())
    return Mode.of(name.strip(), options)


def parse_value(text: str) -> Any:
    """none, true, false, an integer, a number, a tuple of these (separated by colons), or else the text itself."""
    if ":" in text:
        return tuple(parse_value(part) for part in text.split(":"))
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
