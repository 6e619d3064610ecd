"""The options of a request as data, from which signatures, command-line flags and JSON schemas are made."""

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
"""The preset "exact" computes what the official code computes. `flashjanus schedule` found the times of step_cache for
the built-in model, and can find them for any other model."""

Check: TypeAlias = tuple[str, str, Sequence[str]]
"""A question about an image, the answer that counts for the image, and the answers that count against it."""
Judge: TypeAlias = str | Callable[[str], Sequence[Check]]
"""The template of a yes/no question about an image, or a function from a prompt to its checks."""
Callback: TypeAlias = Callable[[Any, int, float, dict[str, Any]], dict[str, Any]]
Absent = TypeVar("Absent")
"""`None` if an option may be left to the preset, `Never` if every option has a value."""


def interval(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{name}: expected two times (low, high) from 0 to 1, got {value!r:.80}")
    low, high = (values.number(name, end, 0.0, 1.0) for end in value)
    if low > high:
        raise InputError(f"{name}: expected (low, high) with low <= high, got {value!r:.80}")
    return low, high


def is_times(value: Any) -> bool:
    """Whether `value` is a list of step-cache times. Such a list begins with 0."""
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
    """Parse N or a comma-separated list of times."""
    return tuple(map(float, text.split(","))) if "," in text else int(text)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One or several non-empty strings, as a tuple."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(one, str) and one for one in found):
        raise InputError(f"{name}: expected a string that is not empty, or a list of them, got {value!r:.80}")
    return tuple(found)


def adapters(name: str, value: Any) -> str | tuple[str | None, ...]:
    """One adapter name, or several names, some of which may be None. The model checks later that they are loaded."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(one is None or (isinstance(one, str) and one) for one in found):
        raise InputError(f"{name}: expected the name of a loaded adapter, or a list of names, got {value!r:.80}")
    return value if isinstance(value, str) else tuple(found)


_UNIT = (0.0, 1.0)
_EVERY = (1, MAX_STEPS)
_TEXTS: dict[str, Any] = dict(
    kind=str,
    several=True,
    rule=texts,
    allowed="a string that is not empty, or a list of them",
    schema={"minLength": 1, "items": {"type": "string", "minLength": 1}},
    group="request",
)
_ADAPTER: dict[str, Any] = dict(
    kind=str,
    several=True,
    rule=adapters,
    allowed="the name of a loaded adapter, or a list of names",
    schema={"minLength": 1, "items": {"type": "string", "minLength": 1}},
    flag=None,
    group="request",
)
_SEED: dict[str, Any] = dict(low=0, high=values.MAX_SEED, late=True, shown="a new one each time", metavar="S")


@dataclass(frozen=True, kw_only=True)
class FlowOptions(Options, Generic[Absent]):
    """The options that control how the flow is integrated and guided. `JanusFlow.generate_image` documents them."""

    num_inference_steps: int | Absent = option(
        None, "steps of the solver", 1, MAX_STEPS, usual=30, flag="steps", metavar="K", presets=PRESETS
    )
    guidance_scale: float | Absent = option(
        None,
        "guidance scale; 1 turns guidance off",
        0.0,
        MAX_GUIDANCE,
        usual=2.0,
        flag="guidance",
        metavar="G",
        presets=PRESETS,
    )
    solver: str | Absent = option(
        None, "ODE solver: euler, or ab2, which is of second order", usual="euler", choices=SOLVERS, presets=PRESETS
    )
    timestep_shift: float | Absent = option(
        None,
        "place more steps near the noise (above 1) or near the image (below 1)",
        0.01,
        100.0,
        usual=1.0,
        metavar="S",
        presets=PRESETS,
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
        None,
        "0 to 1; higher values reduce the contrast that guidance adds",
        *_UNIT,
        usual=0.0,
        metavar="PHI",
        presets=PRESETS,
    )
    uncond_every: int | Absent = option(
        None,
        "compute the unconditional branch only in every N-th evaluation",
        *_EVERY,
        usual=1,
        metavar="N",
        presets=PRESETS,
    )
    step_cache: int | Sequence[float] | Absent = option(
        None,
        "run the language model in every N-th evaluation, or once at each of these times (0 is noise, 1 is the image), "
        "and extrapolate its output in between; `flashjanus schedule` finds good times",
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
"""The flow options without a preset, which give the official sampling."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(FlowOptions[None]):
    """The options of `JanusFlow.generate_image`, which documents them. A flow option of None has the preset's value."""

    preset: str = option(
        "exact", "exact, balanced or fast; sets the options below that are not given", choices=tuple(PRESETS)
    )
    num_images_per_prompt: int = option(
        1, "images per prompt", 1, MAX_IMAGES, flag="num_images", metavar="N", group="request"
    )
    seed: int | Sequence[int] | None = option(
        None, "seed of the first image", several=True, allowed="one, or one for each image", group="request", **_SEED
    )
    generator: torch.Generator | Sequence[torch.Generator] | None = option(
        None,
        "generator that draws the noise of all images instead of a seed, or one generator for each image",
        flag=None,
        group="request",
    )
    latents: torch.Tensor | None = option(None, "the noise itself instead of a seed", flag=None, group="request")
    output_type: str = option(
        "pil", "type of the returned images", choices=("pil", "np", "pt", "latent"), flag=None, group="request"
    )
    adapter: str | Sequence[str | None] | None = option(
        None, "name of a loaded adapter, or one name for each prompt", **_ADAPTER
    )
    callback_on_step_end: Callback | None = option(
        None, "function that is called after every evaluation of the network", flag=None, group="request"
    )
    best_of: int | None = option(
        None,
        "draw N candidates per prompt and keep those that the model scores highest",
        1,
        MAX_IMAGES,
        metavar="N",
        group="choosing",
    )
    accept_above: float | None = option(
        None,
        "stop drawing candidates once enough of them score at least P (0 to 1)",
        *_UNIT,
        metavar="P",
        group="choosing",
    )
    judge: Judge | None = option(
        None,
        'question that scores a candidate; it contains "{prompt}"',
        kind=str,
        late=True,
        flag=None,
        group="choosing",
    )


SAMPLING = tuple(options_of(ImageOptions, "sampling"))
"""The preset and the options that it sets. `sample_latents` takes these, too."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions(Options):
    """The options of `JanusFlow.chat`, which documents them, and of `generate_ids`."""

    max_new_tokens: int = option(512, "longest answer", 1, MAX_COUNT, metavar="N", group="request")
    do_sample: bool = option(False, "sample instead of always taking the likeliest token", kind=bool)
    temperature: float | None = option(
        1.0,
        "sampling temperature; 0 is greedy, values above 1 flatten the distribution",
        0.0,
        1e4,
        usual=1.0,
        metavar="T",
    )
    top_p: float | None = option(
        1.0,
        "sample among the likeliest tokens whose probabilities add up to this value; 1 keeps all tokens",
        *_UNIT,
        usual=1.0,
        metavar="P",
    )
    top_k: int | None = option(
        0,
        "sample among this many of the likeliest tokens; 0 and -1 keep all tokens",
        -1,
        MAX_COUNT,
        usual=0,
        metavar="K",
    )
    repetition_penalty: float = option(
        1.0, "make tokens that the answer already contains less likely; 1 turns this off", 1e-3, 1e3, metavar="R"
    )
    seed: int | None = option(None, "seed of the first answer", **_SEED)
    adapter: str | Sequence[str | None] | None = option(
        None, "name of a loaded adapter, or one name for each conversation", **_ADAPTER
    )
    stop: str | Sequence[str] | None = option(None, "end the answer before this string", metavar="TEXT", **_TEXTS)
    stop_strings: str | Sequence[str] | None = option(None, "another name for stop", flag=None, **_TEXTS)

    def checked(self) -> Self:
        """Check the options. Without do_sample, temperature, top_p and top_k are ignored."""
        return Options.checked(self if self.do_sample else replace(self, temperature=None, top_p=None, top_k=None))

    @property
    def stops(self) -> tuple[str, ...]:
        """All strings that end an answer. The options must be checked."""
        return tuple(dict.fromkeys((*(self.stop or ()), *(self.stop_strings or ()))))
