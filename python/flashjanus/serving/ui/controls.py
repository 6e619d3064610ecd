"""Controls for the options of a request; ranges, defaults and help come from `sampling.options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr

from flashjanus.errors import InputError
from flashjanus.sampling.fields import Option, Options, options_of
from flashjanus.sampling.options import PRESETS, ImageOptions, TokenOptions

REACH: Mapping[str, tuple[float, float]] = {
    "num_images_per_prompt": (8, 1),
    "num_inference_steps": (100, 1),
    "guidance_scale": (10.0, 0.1),
    "temperature": (2.0, 0.05),
    "top_p": (1.0, 0.01),
    "max_new_tokens": (1024, 1),
}
"""Options that have a slider, with its highest value and its step. The API takes values beyond that."""
ADAPTER, NO_ADAPTER = "adapter", ("none", "")
LABELS = {"num_images_per_prompt": "Images", "do_sample": "Sample", "top_p": "Top-p", "best_of": "Best of"}


@dataclass(frozen=True)
class Controls:
    """A control for each of the given options, in order. most: the highest value of an option on this page, if it is
    lower than the option's own."""

    kind: type[Options]
    most: Mapping[str, float] = field(default_factory=dict)
    by_name: dict[str, gr.components.Component] = field(default_factory=dict)

    def add(self, *names: str) -> None:
        """Add controls at this place on the page."""
        for name in names:
            self.by_name[name] = control(name, self._option(name))

    def __getitem__(self, name: str) -> gr.components.Component:
        return self.by_name[name]

    @property
    def all(self) -> list[gr.components.Component]:
        return [*self.by_name.values()]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Convert the controls' values to options, leaving out empty ones. Raises InputError."""
        given = {name: self._read(name, value) for name, value in zip(self.by_name, values, strict=True)}
        return {name: value for name, value in given.items() if value is not None}

    def plain(self, error: Exception) -> str:
        """An error's message, with options named by the labels of their controls."""
        name, colon, rest = str(error).partition(": ")
        known = options_of(self.kind)
        words = f"{label(name, known[name])}: {rest}" if colon and name in known else str(error)
        return words[:1].upper() + words[1:] + "." * (not words.endswith((".", "!", "?")))

    def _option(self, name: str) -> Option:
        option = options_of(self.kind)[name]
        if name not in self.most or option.high is None:
            return option
        return replace(option, high=type(option.high)(min(option.high, self.most[name])))

    def _read(self, name: str, value: Any) -> Any:
        option = self._option(name)
        if isinstance(value, str) and not option.choices:
            try:
                value = (option.parse or option.kind)(value) if value.strip() else None
            except ValueError:
                expected = option.range if option.parse else "an integer" if option.kind is int else "a number"
                raise InputError(f"{name}: expected {expected}, got {value!r:.80}") from None
        if option.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        return option.check(name, value)


images = partial(Controls, ImageOptions)
answers = partial(Controls, TokenOptions)


def control(name: str, option: Option) -> gr.components.Component:
    """A slider if the option is listed in REACH, otherwise the control for the option's type. That of an adapter is
    hidden until `adapters` fills it."""
    if name == ADAPTER:
        return gr.Dropdown([NO_ADAPTER], value="", label="Adapter", visible=False, elem_id=f"fj-{name}")
    value = option.usual if option.default is None else option.default
    about: dict[str, Any] = dict(label=label(name, option), info=sentence(option.meaning), elem_id=f"fj-{name}")
    if name in REACH and option.low is not None and option.high is not None:
        high, step = REACH[name]
        return gr.Slider(option.low, min(option.high, high), value=value, step=step, buttons=[], **about)
    if option.choices:
        return gr.Radio([*option.choices], value=value, **about)
    if option.kind is bool:
        return gr.Checkbox(value, **about)
    if option.late is False and option.range:
        about["info"] += f" {sentence(option.range)}"
    if option.parse is not None or option.kind is str or value is None:
        # the browser turns an empty number into 0 as soon as it shows it
        text = "" if value is None else str(value)
        return gr.Textbox(text, max_lines=1, placeholder=option.shown or "none", **about)
    return gr.Number(value, precision=0 if option.kind is int else None, **about)


def adapters(names: Sequence[str]) -> Any:
    """The update that lets the page choose among these adapters."""
    return gr.update(choices=[NO_ADAPTER, *((name, name) for name in names)], visible=bool(names))


def label(name: str, option: Option) -> str:
    return LABELS.get(name, (option.flag or name).replace("_", " ").capitalize())


def sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


PRESET_NAMES = [name for name in options_of(ImageOptions) if any(name in given for given in PRESETS.values())]
"""Options that at least one preset sets."""
_WORDS = {"exact": "The official sampling", "balanced": "About half the time, as close", "fast": "The least time"}


def preset_values(preset: str) -> dict[str, Any]:
    """The values that the controls show for a preset, for the options that presets set."""
    known = options_of(ImageOptions)
    values = {name: PRESETS[preset].get(name, known[name].usual) for name in PRESET_NAMES}
    return {name: _text(value) if known[name].parse else value for name, value in values.items()}


def preset_meaning(preset: str) -> str:
    """A sentence with the preset's figures."""
    known, given = options_of(ImageOptions), PRESETS[preset]
    steps, solver, cache = (
        given.get(name, known[name].usual) for name in ("num_inference_steps", "solver", "step_cache")
    )
    runs = f", the language model in {len(cache)} of them" if isinstance(cache, tuple) else ""
    return f"{_WORDS.get(preset, preset)}: {steps} steps of {solver}{runs}."


def _text(value: Any) -> str:
    return ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)
