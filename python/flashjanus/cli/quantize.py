"""`flashjanus quantize SRC DST`: write a checkpoint with quantized linears that loads without the original."""

from __future__ import annotations

import argparse

from flashjanus.cli.console import Console
from flashjanus.cli.destination import free_folder
from flashjanus.cli.options import add_output_options
from flashjanus.cli.progress import progress_of

METHODS = ("int8", "int4", "fp8")
"""The same as checkpoint.quantizations.QUANTIZATIONS, which is not imported here because it needs torch."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "quantize",
        help="write a checkpoint with quantized weights",
        description="Write a folder in the official layout in which the language model's linears are quantized and all "
        "else is unchanged. It loads without the original. DST is written completely or not at all. int4 is stored as "
        "int8, and the 4-bit weights are made when it is loaded.",
    )
    parser.add_argument("source", metavar="SRC", help="built-in name, folder or hub id")
    parser.add_argument("destination", metavar="DST", help="a folder that is empty or does not exist yet")
    parser.add_argument("--quantization", choices=METHODS, default="int8", help="method (default: int8)")
    parser.add_argument("--vae", metavar="PATH", help="folder, file or hub id of the VAE (default: the model's own)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    folder = free_folder(args.destination)
    from flashjanus.builtin import NAMES, builtin_folder
    from flashjanus.checkpoint import Checkpoint
    from flashjanus.checkpoint.quantize import quantize_checkpoint

    source = builtin_folder(args.source) if args.source in NAMES else args.source
    checkpoint = Checkpoint.open(source, vae=args.vae)
    with progress_of(console)(len(checkpoint.weights.names()), "quantizing") as show:
        quantize_checkpoint(checkpoint, folder, args.quantization, progress=show)
    before = sum(info.nbytes for info in checkpoint.weights.names().values())
    after = sum(info.nbytes for info in Checkpoint.open(folder).weights.names().values())
    console.text(f"{folder}: {args.quantization}, {after / 1e6:.1f} MB of weights, from {before / 1e6:.1f}")
    console.result(
        {
            "source": args.source,
            "destination": str(folder),
            "quantization": args.quantization,
            "bytes": after,
            "bytes_before": before,
        }
    )
    return 0
