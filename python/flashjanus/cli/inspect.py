"""`flashjanus inspect PATH`: what a checkpoint holds."""

from __future__ import annotations

import argparse

from flashjanus.cli.console import Console
from flashjanus.cli.options import add_output_options


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a checkpoint holds",
        description="Show a checkpoint's configuration, files, tensors and sizes, without loading its weights. "
        "Exit code 2 if it has problems.",
    )
    parser.add_argument("path", metavar="PATH", help="built-in name, folder or hub id")
    parser.add_argument("--vae", metavar="PATH", help="folder or hub id of the VAE, when it is not beside the model")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.builtin import NAMES, builtin_folder
    from flashjanus.checkpoint import Checkpoint, describe, format_description

    source = builtin_folder(args.path) if args.path in NAMES else args.path
    description = describe(Checkpoint.locate(source, vae=args.vae))
    console.text(format_description(description))
    console.result(description)
    problems = description["problems"]
    if problems:  # shown above in full; the exit code is for scripts
        console.note(f"{args.path} cannot be used as it is: {len(problems)} problem{'s' * (len(problems) > 1)}")
    return 2 if problems else 0
