"""`flashjanus random-weights DST`: write a checkpoint of random weights, to try things without a download."""

from __future__ import annotations

import argparse

from flashjanus.cli.bench_options import RANDOM
from flashjanus.cli.console import Console
from flashjanus.cli.destination import free_folder
from flashjanus.cli.options import add_output_options
from flashjanus.cli.progress import progress_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "random-weights",
        help="write a checkpoint of random weights",
        description="Write a folder in the official layout with the tensors, shapes, and files of a published "
        "checkpoint, its VAE included, to try what loads a checkpoint without a download. The weights are random, the "
        "same every time, and in bfloat16; pictures and answers mean nothing, and answers may be empty. The tokenizer "
        "is the built-in model's. DST is written completely or not at all.",
    )
    parser.add_argument("destination", metavar="DST", help="a folder that is empty or does not exist yet")
    parser.add_argument(
        "--size",
        choices=RANDOM,
        default="thin",
        help="full: the published sizes, 4.3 GB; thin: the same widths with two layers, 0.3 GB; shapes: the sizes of "
        "the built-in model, 20 MB (default: thin)",
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    folder = free_folder(args.destination)
    from flashjanus.measure.bench.random_checkpoint import shapes_of, write_random_checkpoint

    with progress_of(console)(len(shapes_of(args.size)[0]), "writing") as show:
        nbytes = write_random_checkpoint(folder, args.size, progress=show)
    console.text(f"{folder}: random weights of size {args.size}, {nbytes / 1e6:.1f} MB, and their VAE")
    console.result({"destination": str(folder), "size": args.size, "bytes": nbytes})
    return 0
