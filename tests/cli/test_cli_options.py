"""Flags of sampling follow from the options: their names, their help, and the values that they give."""

from __future__ import annotations

import re

import pytest
from flashjanus.cli.app import build_parser
from flashjanus.cli.options import given
from flashjanus.sampling.fields import options_of
from flashjanus.sampling.options import SAMPLING, ImageOptions, TokenOptions

ALL = {
    ImageOptions: [name for name, option in options_of(ImageOptions).items() if option.flag is not None],
    TokenOptions: [name for name, option in options_of(TokenOptions).items() if option.flag is not None],
}
CASES = [
    ("generate", ImageOptions, ALL[ImageOptions]),
    ("ask", TokenOptions, ALL[TokenOptions]),
    ("schedule", ImageOptions, SAMPLING),
    ("profile generate", ImageOptions, ("num_images_per_prompt", "seed", *SAMPLING)),
    ("profile chat", TokenOptions, ("max_new_tokens",)),
    ("eval shapes", ImageOptions, ("num_inference_steps", "guidance_scale", "seed")),
]


@pytest.mark.parametrize(("command", "options", "names"), CASES)
def test_flags_and_their_help(cli, command: str, options, names) -> None:
    shown = " ".join(cli(*command.split(), "--help").out.split())
    for name in names:
        option = options_of(options)[name]
        assert re.search(rf"{option.spelled(name)}\b", shown)
        assert option.meaning in shown


def test_values_have_the_names_and_types_of_the_options() -> None:
    flags = "--steps 5 --guidance 3 --solver ab2 --timestep-shift 2 --guidance-interval 0.1 1 --guidance-rescale 0 "
    flags += "--uncond-every 2 --step-cache 0,0.5 --preset fast --num-images 2 --seed 1 --best-of 3 --accept-above 0"
    image = given(build_parser().parse_args(["generate", "a", *flags.split()]), ImageOptions)
    assert image.keys() == set(ALL[ImageOptions])
    options = ImageOptions(**image)
    assert options.checked() == options.checked().checked()
    assert (options.step_cache, options.guidance_interval, options.num_images_per_prompt) == ((0.0, 0.5), [0.1, 1.0], 2)
    flags = "--max-new-tokens 9 --do-sample --temperature 0.5 --top-p 1 --top-k -1 --repetition-penalty 2 --seed 3"
    text = given(build_parser().parse_args(["ask", "a", "b", *flags.split(), "--stop", "x"]), TokenOptions)
    assert text.keys() == set(ALL[TokenOptions])
    assert TokenOptions(**text).checked().stops == ("x",)


def test_defaults_of_sampling_are_left_to_the_model() -> None:
    parse = build_parser().parse_args
    assert given(parse(["generate", "a"]), ImageOptions) == {"num_images_per_prompt": 1}
    assert given(parse(["ask", "a", "b"]), TokenOptions) == {"max_new_tokens": 512, "do_sample": False}
    assert given(parse(["profile", "generate", "a"]), ImageOptions) == {"num_images_per_prompt": 1, "seed": 0}
    assert given(parse(["profile", "chat", "a"]), TokenOptions) == {"max_new_tokens": 64}
    evaluated = {"num_inference_steps": 30, "guidance_scale": 2.0, "seed": 0}
    assert given(parse(["eval", "shapes"]), ImageOptions) == evaluated


def test_defaults_are_shown(cli) -> None:
    shown = " ".join(cli("generate", "--help").out.split())
    assert "steps of the solver (exact: 30; balanced: 20; fast: 16)" in shown
    assert "between which there is guidance (exact: 0 1)" in shown
    assert "exact: 1; balanced: 0,0.13," in shown
    assert "seed of the first image (default: a new one each time)" in shown
    assert "seed of the first image (default: 0)" in " ".join(cli("profile", "generate", "--help").out.split())
