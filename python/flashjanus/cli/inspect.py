"""`flashjanus inspect PATH`: show what a checkpoint contains."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flashjanus.cli.console import Console
from flashjanus.cli.options import add_output_options
from flashjanus.cli.progress import progress_of
from flashjanus.cli.quantize import METHODS

if TYPE_CHECKING:
    from flashjanus.checkpoint import Checkpoint


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show what a checkpoint contains",
        description="Show a checkpoint's configuration, files, tensors and sizes without loading its weights. With "
        "--quantization, also measure the error of quantization. The exit code is 2 if the checkpoint has problems.",
    )
    parser.add_argument("path", metavar="PATH", help="built-in name, folder or hub id")
    parser.add_argument("--vae", metavar="PATH", help="folder, file or hub id of the VAE (default: the model's own)")
    parser.add_argument(
        "--quantization",
        choices=METHODS,
        help="also compare each linear that this method would quantize with its original",
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.builtin import NAMES, builtin_folder
    from flashjanus.checkpoint import Checkpoint, describe, format_description

    source = builtin_folder(args.path) if args.path in NAMES else args.path
    checkpoint = Checkpoint.locate(source, vae=args.vae)
    description = describe(checkpoint)
    console.text(format_description(description))
    problems = description["problems"]
    if args.quantization and not problems:
        description["quantization"] = {
            "method": args.quantization,
            "linears": _losses(checkpoint, console, args.quantization),
        }
    console.result(description)
    if problems:  # shown above in full; the exit code is for scripts
        console.note(f"{args.path} cannot be used as it is: {len(problems)} problem{'s' * (len(problems) > 1)}")
    return 2 if problems else 0


def _losses(checkpoint: Checkpoint, console: Console, method: str) -> list[dict[str, object]]:
    from flashjanus.checkpoint.quantize import format_errors, quantizable, quantization_errors

    with progress_of(console)(len(quantizable(checkpoint)), "quantizing") as show:
        errors = quantization_errors(checkpoint, show, method)
    console.text(f"\n{format_errors(errors, method)}")
    return [error.to_json() for error in errors]
