"""`flashjanus schedule`: find the times at which the language model should run while an image is drawn."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from flashjanus.cli.bench_options import count
from flashjanus.cli.console import Console
from flashjanus.cli.options import (
    add_model_options,
    add_options,
    add_output_options,
    load_model,
    model_facts,
    recipe,
    sampler_of,
)
from flashjanus.errors import InputError
from flashjanus.sampling.options import ImageOptions


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "schedule",
        help="find good times for --step-cache",
        description="Draw once with the language model in every evaluation. Then print, for each number of runs of the "
        "language model, the best times to run it; pass them to --step-cache, which extrapolates its output in "
        "between. The error is an estimate for comparing schedules; to measure one, run `flashjanus quality --mode "
        "'mine: step_cache=0:0.1:...'`.",
    )
    parser.add_argument(
        "--prompts", metavar="FILE|FOLDER", help="text file, or folder of *.txt files, with one prompt per line"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the first prompt's noise (default: 0)"
    )
    parser.add_argument("--runs", type=count, metavar="N", help="print only the schedule with this number of runs")
    add_options(parser, ImageOptions, "sampling")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.measure.quality.asked import choose_prompts, noise, prompt_ids
    from flashjanus.measure.quality.step_cache import find_times
    from flashjanus.sampling import checks

    sampler = sampler_of(args)
    most = len(sampler.schedule) - 1
    if args.runs is not None and not 2 <= args.runs <= most:
        raise InputError(f"--runs: expected 2 to {most} for {most + 1} evaluations, got {args.runs}")
    checks.integer("seed", args.seed, 0, 2**31)
    model = load_model(args, console)
    prompts = choose_prompts(model, None if args.prompts is None else Path(args.prompts))

    def done(what: str) -> None:
        console.check_interrupt()
        console.status(what)

    z0 = noise(model, range(args.seed, args.seed + len(prompts)))
    found = find_times(model, prompt_ids(model, prompts), z0, sampler, done)
    shown = [one for one in found if args.runs in (None, one.runs)]
    lines = [f"{one.runs:5d}  {one.error:8.4f}  {','.join(f'{t:g}' for t in one.times)}" for one in shown]
    console.text("\n".join([f"{'runs':>5}  {'error':>8}  --step-cache", *lines]))
    console.result({**model_facts(model), **recipe(sampler), "schedules": [asdict(one) for one in shown]})
    return 0
