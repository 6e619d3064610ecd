"""`flashjanus ask IMAGE QUESTION`: an answer, streamed."""

from __future__ import annotations

import argparse
import time
from typing import Any

from flashjanus.cli.console import Console
from flashjanus.cli.options import add_model_options, add_output_options, load_model, model_facts
from flashjanus.errors import InputError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "ask",
        help="ask a question about an image",
        description="Answer a question about one or several images; the answer is printed as it is written.",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--image", action="append", default=[], dest="more", metavar="IMAGE", help="one more image; repeatable"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    group = parser.add_argument_group(
        "sampling", "Greedy unless one of --do-sample, --temperature, --top-p, --top-k is given."
    )
    group.add_argument("--do-sample", action="store_true", help="sample instead of taking the likeliest token")
    group.add_argument("--temperature", type=float, metavar="T", help="default: 1; 0 is greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="default: 1, all tokens")
    group.add_argument("--top-k", type=int, metavar="K", help="default: 0, all tokens, as is -1")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="default: 1, none")
    group.add_argument("--seed", type=int, metavar="S", help="default: a new one each time")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.inputs.images import load_image

    if not args.question.strip():
        raise InputError("QUESTION must not be empty, got only white space")
    if "" in (args.stop or []):
        raise InputError("--stop is empty: expected a text before which the answer is to end")
    names = [args.image, *args.more]
    images = [load_image(name) for name in names]
    model = load_model(args, console)
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": args.question})
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    given = {name: value for name, value in sampling.items() if value is not None}
    started = time.perf_counter()
    pieces = []
    for piece in model.chat(
        [{"role": "user", "content": content}],
        max_new_tokens=args.max_new_tokens,
        do_sample=args.do_sample or bool(given),
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
        stream=True,
        **given,
    ):
        console.check_interrupt()
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
