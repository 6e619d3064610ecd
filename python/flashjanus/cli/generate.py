"""`flashjanus generate PROMPT...`: prompts to PNG files."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flashjanus import __version__
from flashjanus.cli.console import Console
from flashjanus.cli.destination import Destination
from flashjanus.cli.options import (
    add_model_options,
    add_output_options,
    add_sampling_options,
    load_model,
    model_facts,
    recipe,
    sampler_of,
)
from flashjanus.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from flashjanus import JanusFlow

MAX_ENLARGE = 16


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw images from prompts",
        description="Draw images from prompts and print the paths of the PNG files. Prompt, seed, steps, guidance and "
        "model are stored in each file as PNG text. Quote a prompt: each argument is a prompt of its own.",
    )
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="what to draw")
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="images per prompt (default: 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the first image (default: a new one each time)")
    parser.add_argument(
        "--best-of", type=int, metavar="N", help="draw N candidates per prompt and keep those that the model finds best"
    )
    parser.add_argument(
        "--accept-above",
        type=float,
        metavar="P",
        help="with --best-of: draw no more once enough images score P (0 to 1)",
    )
    parser.add_argument("--out", default=".", metavar="DIR|FILE.png", help="folder, or file for one image (default: .)")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same name instead of numbering")
    parser.add_argument(
        "--enlarge", type=int, default=1, metavar="N", help="write every pixel as N x N pixels (default: 1)"
    )
    add_sampling_options(parser)
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    if not 1 <= args.enlarge <= MAX_ENLARGE:
        raise InputError(f"--enlarge must be 1 to {MAX_ENLARGE}, got {args.enlarge}")
    destination = Destination(args.out, len(args.prompt) * args.num_images, args.overwrite)
    sampler = sampler_of(args)
    model = load_model(args, console)
    from flashjanus.pipeline.files import save_png
    from flashjanus.pipeline.janusflow import ROWS_AT_ONCE

    drawn = len(args.prompt) * max(args.num_images, args.best_of or 0)
    at_once = ROWS_AT_ONCE if args.accept_above is None else max(1, min(args.num_images, ROWS_AT_ONCE))
    batches = -(-drawn // at_once)
    done = itertools.count(1)
    with console.progress(len(sampler.schedule) * batches, "drawing") as show:

        def step_done(_model: JanusFlow, _step: int, _time: float, state: dict[str, Any]) -> dict[str, Any]:
            console.check_interrupt()
            show(next(done))
            return state

        out = model.generate_image(
            args.prompt,
            num_images_per_prompt=args.num_images,
            **asdict(sampler),
            seed=args.seed,
            callback_on_step_end=step_done,
            best_of=args.best_of,
            accept_above=args.accept_above,
        )
    prompts = [prompt for prompt in args.prompt for _ in range(args.num_images)]
    facts = model_facts(model)
    destination.make_folder()
    paths = []
    scores = out.scores if out.scores is not None else itertools.repeat(None, len(prompts))
    for image, prompt, seed, score in zip(out.images, prompts, out.seeds, scores, strict=True):
        path = destination.path(prompt, seed)
        metadata = {
            "prompt": prompt,
            "seed": str(seed),
            **{name: str(value) for name, value in recipe(sampler).items()},
            "model": str(facts["model"]),
            "Software": f"flashjanus {__version__}",
            **({} if score is None else {"score": f"{score:.4f}"}),
        }
        save_png(_enlarged(image, args.enlarge), path, metadata)
        paths.append(str(path))
        console.text(str(path))
    console.result(
        {
            "paths": paths,
            "prompts": prompts,
            "seeds": list(out.seeds),
            "scores": out.scores,
            **recipe(sampler),
            **facts,
            "timings": dict(out.timings),
        }
    )
    return 0


def _enlarged(image: PIL.Image.Image, factor: int) -> PIL.Image.Image:
    from PIL import Image

    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
