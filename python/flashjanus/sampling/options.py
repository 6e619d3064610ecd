"""The options of a request as data: signatures, flags of the command line and JSON schemas follow from these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from flashjanus.errors import InputError
from flashjanus.sampling import values
from flashjanus.sampling.fields import Options, option, options_of
from flashjanus.sampling.values import MAX_COUNT, MAX_GUIDANCE, MAX_STEPS

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

SOLVERS = ("euler", "ab2")
MAX_IMAGES = 10_000
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": dict(
        solver="ab2",
        num_inference_steps=20,
        timestep_shift=0.7,
        step_cache=(0.0, 0.13, 0.2, 0.26, 0.37, 0.48, 0.63, 0.76, 0.92),
    ),
    "fast": dict(
        solver="ab2",
        num_inference_steps=16,
        timestep_shift=0.7,
        step_cache=(0.0, 0.16, 0.24, 0.39, 0.52, 0.7, 0.86),
    ),
}
"""exact: what the official code computes. The times of step_cache are what `flashjanus schedule` finds for the built-in
model; it finds them for another in the same way."""

Check: TypeAlias = tuple[str, str, Sequence[str]]
"""A question about an image, the answer that speaks for it, and the answers against it."""
Judge: TypeAlias = str | Callable[[str], Sequence[Check]]
"""What a prompt's images are asked: the wording of a yes/no question, or the checks of a prompt."""
Callback: TypeAlias = Callable[[Any, int, float, dict[str, Any]], dict[str, Any]]
Absent = TypeVar("Absent")
"""None where an option may be left to the preset, nothing where all of them have a value."""


def interval(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{name}: expected two times (low, high) from 0 to 1, got {value!r:.80}")
    low, high = (values.number(name, end, 0.0, 1.0) for end in value)
    if low > high:
        raise InputError(f"{name}: expected (low, high) with low <= high, got {value!r:.80}")
    return low, high


def is_times(value: Any) -> bool:
    """True for times of a step cache, which begin with 0, as no number of evaluations does."""
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return listed and isinstance(value[0], Real) and value[0] == 0


def every_or_times(name: str, value: Any) -> int | tuple[float, ...]:
    if isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= MAX_STEPS:
        return int(value)
    if not is_times(value):
        expected = f"{values.integers(1, MAX_STEPS)}, or times that begin with 0"
        raise InputError(f"{name}: expected {expected}, got {value!r:.80}")
    times = tuple(values.number(name, t, 0.0, 1.0) for t in value)
    if any(after <= t for t, after in pairwise((*times, 1.0))):
        raise InputError(f"{name}: expected times that begin with 0, rise and stay below 1, got {value!r:.80}")
    return times


def step_cache(text: str) -> int | tuple[float, ...]:
    """N, or times between commas."""
    return tuple(map(float, text.split(","))) if "," in text else int(text)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A string or several, none of them empty."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(one, str) and one for one in found):
        raise InputError(f"{name}: expected a string that is not empty, or a list of such, got {value!r:.80}")
    return tuple(found)


def adapters(name: str, value: Any) -> str | tuple[str | None, ...]:
    """A name, or several, of which some may be None; which there are, the model knows."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(one is None or (isinstance(one, str) and one) for one in found):
        raise InputError(f"{name}: expected the name of a loaded adapter, or a list of such, got {value!r:.80}")
    return value if isinstance(value, str) else tuple(found)


_UNIT = (0.0, 1.0)
_EVERY = (1, MAX_STEPS)
_TEXTS: dict[str, Any] = dict(
    kind=str,
    several=True,
    rule=texts,
    allowed="a string that is not empty, or a list of such",
    schema={"minLength": 1, "items": {"type": "string", "minLength": 1}},
    group="request",
)
_ADAPTER: dict[str, Any] = dict(
    kind=str,
    several=True,
    rule=adapters,
    allowed="the name of a loaded adapter, or a list of such",
    schema={"minLength": 1, "items": {"type": "string", "minLength": 1}},
    flag=None,
    group="request",
)
_SEED: dict[str, Any] = dict(low=0, high=values.MAX_SEED, late=True, shown="a new one each time", metavar="S")


@dataclass(frozen=True, kw_only=True)
class FlowOptions(Options, Generic[Absent]):
    """How the flow of one image is integrated and guided; `JanusFlow.generate_image` describes it in full."""

    num_inference_steps: int | Absent = option(
        None, "steps of the solver", 1, MAX_STEPS, usual=30, flag="steps", metavar="K", presets=PRESETS
    )
    guidance_scale: float | Absent = option(
        None, "guidance scale; 1 = none", 0.0, MAX_GUIDANCE, usual=2.0, flag="guidance", metavar="G", presets=PRESETS
    )
    solver: str | Absent = option(
        None, "euler, or ab2, of second order", usual="euler", choices=SOLVERS, presets=PRESETS
    )
    timestep_shift: float | Absent = option(
        None, "more steps near the noise (> 1) or the image", 0.01, 100.0, usual=1.0, metavar="S", presets=PRESETS
    )
    guidance_interval: tuple[float, float] | Absent = option(
        None,
        "times from 0 (noise) to 1 (image) between which there is guidance",
        *_UNIT,
        usual=_UNIT,
        length=2,
        rule=interval,
        allowed="two times (low, high)",
        metavar=("LOW", "HIGH"),
        presets=PRESETS,
    )
    guidance_rescale: float | Absent = option(
        None, "0 to 1: against too much contrast", *_UNIT, usual=0.0, metavar="PHI", presets=PRESETS
    )
    uncond_every: int | Absent = option(
        None, "compute the unconditional branch every N-th time", *_EVERY, usual=1, metavar="N", presets=PRESETS
    )
    step_cache: int | Sequence[float] | Absent = option(
        None,
        "run the language model every N-th time, or from these times (0 noise, 1 image) on, else extrapolate; "
        "`flashjanus schedule` finds times",
        *_EVERY,
        usual=1,
        several=True,
        rule=every_or_times,
        allowed=f"{values.integers(1, MAX_STEPS)}, or times that begin with 0, rise and stay below 1",
        schema={"items": {"type": "number", "minimum": 0.0, "exclusiveMaximum": 1.0}, "minItems": 1},
        metavar="N | 0,T,...",
        parse=step_cache,
        presets=PRESETS,
    )


USUAL: Mapping[str, Any] = {name: one.usual for name, one in options_of(FlowOptions).items()}
"""The flow's options without any preset: the official sampling."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(FlowOptions[None]):
    """The options of `JanusFlow.generate_image`, which describes them in full. Of the flow's, None is the preset's."""

    preset: str = option("exact", "exact, balanced or fast: options below, unless given", choices=tuple(PRESETS))
    num_images_per_prompt: int = option(
        1, "images per prompt", 1, MAX_IMAGES, flag="num_images", metavar="N", group="request"
    )
    seed: int | Sequence[int] | None = option(
        None, "seed of the first image", several=True, allowed="one, or one for each image", group="request", **_SEED
    )
    generator: torch.Generator | Sequence[torch.Generator] | None = option(
        None, "draws the noise of all images instead of a seed, or one for each image", flag=None, group="request"
    )
    latents: torch.Tensor | None = option(None, "the noise itself, instead of a seed", flag=None, group="request")
    output_type: str = option(
        "pil", "what the images are", choices=("pil", "np", "pt", "latent"), flag=None, group="request"
    )
    adapter: str | Sequence[str | None] | None = option(None, "a loaded adapter, or one for each prompt", **_ADAPTER)
    callback_on_step_end: Callback | None = option(
        None, "is called after every evaluation of the network", flag=None, group="request"
    )
    best_of: int | None = option(
        None,
        "draw N candidates per prompt, keep what the model finds best",
        1,
        MAX_IMAGES,
        metavar="N",
        group="choosing",
    )
    accept_above: float | None = option(
        None, "draw no more candidates once enough score P (0 to 1)", *_UNIT, metavar="P", group="choosing"
    )
    judge: Judge | None = option(
        None, 'what candidates are asked, with "{prompt}" in it', kind=str, late=True, flag=None, group="choosing"
    )


SAMPLING = tuple(options_of(ImageOptions, "sampling"))
"""The preset and what it gives: what `sample_latents` takes as well."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions(Options):
    """The options of `JanusFlow.chat`, which describes them in full, and of `generate_ids`."""

    max_new_tokens: int = option(512, "longest answer", 1, MAX_COUNT, metavar="N", group="request")
    do_sample: bool = option(False, "sample instead of taking the likeliest token", kind=bool)
    temperature: float | None = option(
        1.0, "0 is greedy; above 1 evens the probabilities out", 0.0, 1e4, usual=1.0, metavar="T"
    )
    top_p: float | None = option(
        1.0, "sample of the likeliest tokens with this share of the probability; 1: all", *_UNIT, usual=1.0, metavar="P"
    )
    top_k: int | None = option(
        0, "sample of so many of the likeliest tokens; 0 and -1: all", -1, MAX_COUNT, usual=0, metavar="K"
    )
    repetition_penalty: float = option(
        1.0, "makes tokens that the answer has already less likely; 1: none", 1e-3, 1e3, metavar="R"
    )
    seed: int | None = option(None, "of the first answer's tokens", **_SEED)
    adapter: str | Sequence[str | None] | None = option(
        None, "a loaded adapter, or one for each conversation", **_ADAPTER
    )
    stop: str | Sequence[str] | None = option(None, "end the answer before this text", metavar="TEXT", **_TEXTS)
    stop_strings: str | Sequence[str] | None = option(None, "the same under another name", flag=None, **_TEXTS)

    def checked(self) -> Self:
        """As of all options; without do_sample, what only matters with it is not looked at."""
        return Options.checked(self if self.do_sample else replace(self, temperature=None, top_p=None, top_k=None))

    @property
    def stops(self) -> tuple[str, ...]:
        """All strings that end an answer, of checked options."""
        return tuple(dict.fromkeys((*(self.stop or ()), *(self.stop_strings or ()))))
