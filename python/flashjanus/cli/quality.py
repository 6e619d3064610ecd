"""`flashjanus quality`: compare the speed and quality of several modes of one model in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus.cli.bench_options import RANDOM, STDOUT, add_report_options, bound, count, count_or_none, minutes
from flashjanus.cli.console import Console
from flashjanus.cli.options import add_model_options, load_model
from flashjanus.cli.progress import progress_of
from flashjanus.cli.provenance import provenance
from flashjanus.cli.reports import check_files, publish
from flashjanus.errors import InputError

if TYPE_CHECKING:
    from flashjanus import JanusFlow

BEYOND = 1
"""Exit code if a mode is farther from the converged solution than --bound allows."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "quality",
        help="compare the speed and quality of several modes",
        description="Compare several modes of one model. Measured are the time of an image, with the modes in turns; "
        "the distance of the latents to the converged solution of the flow, relative to that of the exact mode (30 "
        "Euler steps); the similarity of latents and images to those of the exact mode; and, for a model of the shapes "
        "world, the share of correct pictures and answers.",
    )
    group = parser.add_argument_group("modes")
    group.add_argument(
        "--modes",
        default="euler-20,euler-10",
        metavar="NAME[,NAME]",
        help="modes of flashjanus/measure/quality/modes.py to compare with the exact one (default: euler-20,euler-10)",
    )
    group.add_argument(
        "--mode",
        action="append",
        default=[],
        metavar="'NAME: OPTION=VALUE, ...'",
        help="another mode, from options of from_pretrained, generate_image and sample_latents; a:b is a pair; "
        "repeatable",
    )
    group.add_argument("--guidance", type=float, metavar="G", help="guidance scale of the modes that do not set one")
    group = parser.add_argument_group("how much is measured")
    group.add_argument(
        "--prompts", metavar="FILE|FOLDER", help="text file, or folder of *.txt files, with one prompt per line"
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first prompt's noise (default: 0)")
    group.add_argument(
        "--converged-steps",
        type=count_or_none,
        default=500,
        metavar="K",
        help="number of Euler steps in float32 that give the converged solution; 0 skips it (default: 500)",
    )
    group.add_argument(
        "--score",
        action="store_true",
        help="score pictures and answers of the shapes world, which is always done for the built-in model",
    )
    group.add_argument(
        "--samples", type=count_or_none, default=20, metavar="N", help="scored pictures per category (default: 20)"
    )
    group.add_argument(
        "--questions", type=count_or_none, default=20, metavar="N", help="scored questions per topic (default: 20)"
    )
    group.add_argument("--rounds", type=count, default=5, metavar="N", help="rounds of timing (default: 5)")
    group.add_argument(
        "--minutes",
        type=minutes,
        default=15.0,
        metavar="M",
        help="begin no round of timing that would end after this many minutes (default: 15)",
    )
    group = add_report_options(parser, "write a plot of speed against quality to FILE.svg")
    group.add_argument(
        "--bound",
        type=bound,
        metavar="RATIO",
        help=f"exit with code {BEYOND} if a mode's distance to the converged solution is significantly more than RATIO "
        "times that of the exact mode",
    )
    add_model_options(parser)
    parser.add_argument("--random-weights", choices=RANDOM, help="random weights of this size instead of --model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    console.json = args.json == STDOUT
    if args.random_weights and (args.model != "shapes" or args.vae):
        raise InputError("--random-weights: cannot be combined with --model or --vae, which it replaces")
    if args.random_weights and args.score:
        raise InputError("--score: expected a trained model of the shapes world, got random weights")
    if args.bound is not None and not args.converged_steps:
        raise InputError("--bound: requires --converged-steps above 0, because it bounds the distance to that solution")
    from flashjanus.measure.quality.asked import choose_prompts
    from flashjanus.measure.quality.distance import ENOUGH_PROMPTS
    from flashjanus.measure.quality.modes import modes

    check_files(args)
    chosen = modes(args.modes, args.mode)
    load, exact = _loader(args, console)
    prompts = choose_prompts(exact, None if args.prompts is None else Path(args.prompts))
    if args.bound is not None and len(prompts) < ENOUGH_PROMPTS:
        raise InputError(
            f"--bound: expected at least {ENOUGH_PROMPTS} prompts, because fewer are not conclusive, got {len(prompts)}"
        )
    from flashjanus.builtin import NAMES
    from flashjanus.measure.quality.plot import svg
    from flashjanus.measure.quality.quality_report import QualityReport
    from flashjanus.measure.quality.run import Effort, measure_quality
    from flashjanus.measure.quality.subject import Work

    scored = args.score or exact.name in NAMES
    effort = Effort(
        args.converged_steps,
        args.samples if scored else 0,
        args.questions if scored else 0,
        args.rounds,
        args.minutes,
    )
    common = {} if args.guidance is None else {"guidance_scale": args.guidance}
    work = Work(prompts, args.seed, common)

    def done(what: str) -> None:
        console.check_interrupt()
        console.status(what)

    results = measure_quality(load, chosen, work, effort, done=done, progress=progress_of(console))
    head = {"kind": "quality", **provenance(exact), "seed": work.seed, "prompts": work.prompts, "effort": vars(effort)}
    report = QualityReport(head, results)
    beyond = [] if args.bound is None else report.beyond(args.bound)
    found = {**report.to_json(), "bound": args.bound, "beyond_bound": beyond}
    publish(args, console, found, str(report), lambda: svg(report))
    for name in beyond:
        console.note(f"{name} is farther from the converged solution than {args.bound:g} times the exact mode")
    return BEYOND if beyond else 0


def _loader(args: argparse.Namespace, console: Console) -> tuple[Callable[..., JanusFlow], JanusFlow]:
    """A function that loads the model with other options, once for each set, and the model of the command line."""
    from flashjanus import JanusFlow
    from flashjanus.measure.bench.models import random_model

    base: dict[str, Any] = {}
    loaded: dict[str, JanusFlow] = {}

    def load(**loading: Any) -> JanusFlow:
        choices = {name: value for name, value in {**base, **loading}.items() if value is not None}
        key = repr(sorted(choices.items()))
        if key not in loaded:
            loaded[key] = (
                random_model(args.random_weights, **choices)
                if args.random_weights
                else JanusFlow.from_pretrained(args.model, vae=args.vae, **choices)
            )
        return loaded[key]

    def first(**choices: Any) -> JanusFlow:
        base.update(choices)
        return load()

    exact = load_model(args, console, first)
    return load, exact
