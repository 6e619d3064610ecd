"""`flashjanus ask IMAGE QUESTION`: answer a question and stream the answer."""

from __future__ import annotations

import argparse
import time
from typing import Any

from flashjanus.cli.console import Console
from flashjanus.cli.options import (
    adapters_of,
    add_adapter_option,
    add_model_options,
    add_options,
    add_output_options,
    given,
    load_model,
    model_facts,
)
from flashjanus.errors import InputError
from flashjanus.sampling.options import TokenOptions

SAMPLED = ("temperature", "top_p", "top_k")
"""Each of these options turns sampling on."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "ask",
        help="ask a question about an image",
        description="Answer a question about one or several images. The answer is printed while it is generated.",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--image", action="append", default=[], dest="more", metavar="IMAGE", help="another image; repeatable"
    )
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in ("do_sample", *SAMPLED))
    add_options(parser, TokenOptions, about=f"Decoding is greedy unless one of {flags} is given.")
    add_adapter_option(parser, "LoRA adapter to answer with: a folder that PEFT wrote, or a hub id")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.inputs.images import load_image

    if not args.question.strip():
        raise InputError("QUESTION must not be empty, got only white space")
    if "" in (args.stop or []):
        raise InputError("--stop: expected text before which the answer ends, got an empty string")
    names, adapter = [args.image, *args.more], next(iter(adapters_of(args, 1)), None)
    images = [load_image(name) for name in names]
    model = load_model(args, console)
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": args.question})
    options = given(args, TokenOptions) | ({} if adapter is None else {"adapter": adapter})
    options["do_sample"] |= not options.keys().isdisjoint(SAMPLED)
    started = time.perf_counter()
    pieces: list[str] = []
    for piece in model.chat([{"role": "user", "content": content}], stream=True, **options):
        console.check_interrupt()
        if not pieces:  # the tokens of an answer usually begin with a space
            piece = piece.lstrip()
        if piece:
            pieces.append(piece)
            console.text(piece, end="")
    console.text("")
    console.result(
        {
            "answer": "".join(pieces),
            "question": args.question,
            "images": names,
            **model_facts(model),
            "seconds": time.perf_counter() - started,
        }
    )
    return 0
