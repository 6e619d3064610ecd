"""`flashjanus generate PROMPT...`: draw prompts and write PNG files."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus import __version__
from flashjanus.cli.console import Console
from flashjanus.cli.destination import Destination
from flashjanus.cli.options import (
    adapters_of,
    add_adapter_option,
    add_model_options,
    add_options,
    add_output_options,
    load_model,
    model_facts,
    recipe,
    sampler_of,
)
from flashjanus.errors import InputError
from flashjanus.sampling.fields import options_of
from flashjanus.sampling.options import ImageOptions

if TYPE_CHECKING:
    import PIL.Image

    from flashjanus import JanusFlow

MAX_ENLARGE = 16


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw images from prompts",
        description="Draw images from prompts, write each to a PNG file as soon as it is drawn, and print its path. "
        "Each file stores its prompt, seed, steps, guidance and model as PNG text. Each argument is one prompt, so "
        "quote prompts with spaces.",
    )
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="prompt to draw")
    add_options(parser, ImageOptions)
    parser.add_argument(
        "--out",
        default=".",
        metavar="DIR|FILE.png",
        help="output folder, or output file for a single image (default: .)",
    )
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        metavar="N",
        help="skip the first N images; with the --seed of an interrupted run, this draws the rest of them",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing files instead of adding a number to the name"
    )
    parser.add_argument(
        "--enlarge", type=int, default=1, metavar="N", help="write every pixel as N x N pixels (default: 1)"
    )
    add_adapter_option(parser, "LoRA adapter to draw with: a folder that PEFT wrote, or a hub id")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    if not 1 <= args.enlarge <= MAX_ENLARGE:
        raise InputError(f"--enlarge must be 1 to {MAX_ENLARGE}, got {args.enlarge}")
    destination = Destination(args.out, len(args.prompt) * args.num_images_per_prompt, args.overwrite)
    sampler, adapter = sampler_of(args), next(iter(adapters_of(args, 1)), None)
    work = Work.of(args)
    model = load_model(args, console)
    from flashjanus.api.janusflow import ROWS_AT_ONCE

    at_once = ROWS_AT_ONCE if args.accept_above is None else max(1, min(args.num_images_per_prompt, ROWS_AT_ONCE))
    batches = -(-work.drawn // at_once)
    done = itertools.count(1)
    named = {} if adapter is None else {"adapter": adapters_of(args)[adapter]}
    facts = {**recipe(sampler), **named, **model_facts(model)}
    saved = Saved(work, destination, {name: str(facts[name]) for name in (*recipe(sampler), *named, "model")})
    timings: dict[str, float] = {}
    with console.progress(len(sampler.schedule) * batches, "drawing") as show:

        def step_done(_model: JanusFlow, _step: int, _time: float, state: dict[str, Any]) -> dict[str, Any]:
            console.check_interrupt()
            show(next(done))
            return state

        outputs = model.stream_images(
            work.prompts,
            num_images_per_prompt=work.images,
            **asdict(sampler),
            seed=work.seeds,
            **({} if adapter is None else {"adapter": adapter}),
            callback_on_step_end=step_done,
            best_of=args.best_of,
            accept_above=args.accept_above,
        )
        console.so_far = saved.told()
        for out in outputs:
            for name, seconds in out.timings.items():
                timings[name] = timings.get(name, 0.0) + seconds
            scores: Sequence[float | None] = out.scores or [None] * len(out.images)
            for image, seed, score in zip(out.images, out.seeds or [], scores, strict=True):
                with console.uninterrupted():
                    path = saved.add(_enlarged(image, args.enlarge), seed, score)
                    console.so_far = saved.told()
                    console.text(str(path))
    console.so_far = None
    console.result({**saved.to_json(), "scores": saved.scores or None, **facts, "timings": timings})
    return 0


@dataclass(frozen=True)
class Work:
    """The images to draw: `images` images of each prompt, with seeds as `generate_image` takes them.

    drawn: number of images that the model draws, candidates included. total: images of the whole command. skipped:
    images that --skip leaves out. unit: number of images that must be drawn together; all images of a prompt must be
    if they are chosen from candidates or come from one draw. first: the seed of image 0 of the command.
    """

    prompts: list[str]
    images: int
    seeds: int | list[int]
    drawn: int
    total: int
    skipped: int
    unit: int
    first: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Work:
        """Raises InputError."""
        from flashjanus.sampling import checks

        images = options_of(ImageOptions)["num_images_per_prompt"].check("--num-images", args.num_images_per_prompt)
        total = len(args.prompt) * images
        chosen = args.best_of is not None or args.accept_above is not None
        unit = images if chosen or args.numerics == "official" else 1
        skipped = checks.integer("--skip", args.skip, 0, total - 1)
        if skipped % unit:
            raise InputError(
                f"--skip: expected a multiple of {unit}, because the images of a prompt belong together here, got "
                f"{skipped}"
            )
        each = max(args.best_of or 1, 1)
        first = checks.first_seed(args.seed, total * each)
        if unit == 1 and not chosen:
            prompts = [prompt for prompt in args.prompt for _ in range(images)][skipped:]
            return cls(
                prompts, 1, list(range(first + skipped, first + total)), len(prompts), total, skipped, unit, first
            )
        left = skipped // images
        prompts = args.prompt[left:]
        drawn = len(prompts) * (each if chosen else images)
        return cls(prompts, images, first + left * each, drawn, total, skipped, unit, first)

    def prompt(self, n: int) -> str:
        """The prompt of image n, counted from the first image that is not skipped."""
        return self.prompts[n // self.images]


@dataclass
class Saved:
    """The images that a run has written to files."""

    work: Work
    destination: Destination
    recipe: Mapping[str, str]
    paths: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, image: PIL.Image.Image, seed: int, score: float | None) -> Path:
        """Write the next image, with its recipe as PNG text. Raises OutputError."""
        prompt = self.work.prompt(len(self.paths))
        metadata = {
            "prompt": prompt,
            "seed": str(seed),
            **self.recipe,
            "Software": f"flashjanus {__version__}",
            **({} if score is None else {"score": f"{score:.4f}"}),
        }
        path = self.destination.save(image, prompt, seed, metadata)
        self.paths.append(str(path))
        self.prompts.append(prompt)
        self.seeds.append(seed)
        self.scores += [] if score is None else [score]
        return path

    def to_json(self) -> dict[str, Any]:
        return {"paths": self.paths, "prompts": self.prompts, "seeds": self.seeds}

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Words and JSON facts for a run that ends early: how many images it saved, and how to continue it."""
        work, count = self.work, len(self.paths)
        facts = self.to_json()
        wanted = work.total - work.skipped
        if not count:
            return ("; no image was saved" if wanted > 1 else ""), {}
        skip = (work.skipped + count) // work.unit * work.unit
        words = f"; {count} of {wanted} images were saved in {self.destination.folder}; to continue, repeat the command"
        return f"{words} with --seed {work.first} --skip {skip}", facts


def _enlarged(image: PIL.Image.Image, factor: int) -> PIL.Image.Image:
    from PIL import Image

    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
