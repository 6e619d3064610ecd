"""`flashjanus profile generate|chat`: show where the time of a request goes, compared with the machine's ceilings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flashjanus.cli.console import Console
from flashjanus.cli.options import (
    add_model_options,
    add_option,
    add_options,
    add_output_options,
    load_model,
    model_facts,
    recipe,
    sampler_of,
)
from flashjanus.disk.writing import check_writable, write_text
from flashjanus.errors import DeviceError, InputError
from flashjanus.sampling.options import ImageOptions, TokenOptions

if TYPE_CHECKING:
    from flashjanus import JanusFlow
    from flashjanus.measure.profile.measure import Profile

MAX_REPEATS = 1000


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "profile",
        help="show where a request's time goes",
        description="Time every node of a request, and the time outside of nodes, and compare it with the machine's "
        "ceilings.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="generate|chat", required=True)
    generate = kinds.add_parser(
        "generate", help="draw images from prompts", description="Profile the drawing of images. No image is written."
    )
    generate.add_argument("prompt", nargs="+", metavar="PROMPT", help="prompt to draw")
    add_option(generate, ImageOptions, "num_images_per_prompt")
    add_option(generate, ImageOptions, "seed", default=0)
    add_options(generate, ImageOptions, "sampling")
    generate.set_defaults(run=run_generate)
    chat = kinds.add_parser(
        "chat", help="answer a question", description="Profile a greedy answer to a question, with or without images."
    )
    chat.add_argument("question", metavar="QUESTION", help="what to ask")
    chat.add_argument("--image", action="append", default=[], metavar="IMAGE", help="image file; repeatable")
    add_option(chat, TokenOptions, "max_new_tokens", default=64)
    chat.set_defaults(run=run_chat)
    for kind in (generate, chat):
        _add_profile_options(kind)
        add_model_options(kind)
        add_output_options(kind)


def _add_profile_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("profile")
    group.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="number of runs with the profiler and as many without it, in turns, after one warm-up run; the profiled "
        "run with the median time is shown (default: 3)",
    )
    group.add_argument("--nodes", action="store_true", help="print a row for each node instead of each op")
    group.add_argument("--trace", metavar="FILE", help="write a trace for chrome://tracing or ui.perfetto.dev")
    group.add_argument("--html", metavar="FILE", help="write an HTML page with charts, including one of memory")
    group.add_argument(
        "--nvtx", action="store_true", help="on a GPU, mark programs and nodes with NVTX ranges for NVIDIA's tools"
    )


def run_generate(args: argparse.Namespace, console: Console) -> int:
    _check(args)
    sampler = sampler_of(args)
    model = load_model(args, console)

    def request() -> None:
        console.check_interrupt()
        model.prefixes.clear()  # so that no request profits from an earlier one
        model.generate_image(
            args.prompt,
            num_images_per_prompt=args.num_images_per_prompt,
            **asdict(sampler),
            seed=args.seed,
        )

    asked = {"prompt": args.prompt, "num_images": args.num_images_per_prompt, "seed": args.seed} | recipe(sampler)
    return _profile(args, console, model, request, asked)


def run_chat(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.inputs.images import load_image

    if not args.question.strip():
        raise InputError("QUESTION must not be empty, got only white space")
    _check(args)
    images = [load_image(name) for name in args.image]
    model = load_model(args, console)
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": args.question})

    def request() -> None:
        console.check_interrupt()
        model.prefixes.clear()
        model.chat([{"role": "user", "content": content}], max_new_tokens=args.max_new_tokens)

    asked = {name: getattr(args, name) for name in ("question", "image", "max_new_tokens")}
    return _profile(args, console, model, request, asked)


def _check(args: argparse.Namespace) -> None:
    """Check everything that needs no model before one is loaded."""
    if not 1 <= args.repeats <= MAX_REPEATS:
        raise InputError(f"--repeats must be 1 to {MAX_REPEATS}, got {args.repeats}")

    for name in (args.trace, args.html):
        if name is not None:
            check_writable(name)
    if args.nvtx:
        import torch

        from flashjanus.engine.device.capabilities import unusable

        reason = unusable(torch.device("cuda"))
        if reason is not None:
            raise DeviceError(f"--nvtx: expected a GPU, but {reason}; leave --nvtx out")


def _profile(
    args: argparse.Namespace,
    console: Console,
    model: JanusFlow,
    request: Callable[[], None],
    asked: dict[str, Any],
) -> int:
    from flashjanus.measure.profile.html import page
    from flashjanus.measure.profile.measure import measure
    from flashjanus.measure.profile.table import report
    from flashjanus.measure.profile.trace import trace

    with console.progress(2 * args.repeats + 1, "profiling") as show:
        profile = measure(model, request, args.repeats, args.nvtx, show)
    facts = model_facts(model)
    words = asked.get("prompt") or [asked["question"]]
    title = f"flashjanus profile {args.kind}: {', '.join(map(repr, words))}, {facts['model']} on {model.why}"
    if args.trace is not None:
        write_text(args.trace, json.dumps({**trace(profile), "otherData": {"request": title}}))
    if args.html is not None:
        write_text(args.html, page(profile, title))
    console.text(f"{title}\n{report(profile, args.nodes)}")
    console.result({**facts, **asked, **_facts(profile, args.nodes)})
    return 0


def _facts(profile: Profile, by_node: bool) -> dict[str, Any]:
    from flashjanus.measure.profile.memory import arena
    from flashjanus.measure.profile.rows import bucket, programs, rows

    wall, parts = profile.median.wall, rows(profile, by_node)
    plans = {bucket(run.plan): run.plan for run in profile.median.runs}

    def table(of: Sequence[Any]) -> list[dict[str, Any]]:
        return [row.to_json(wall) for row in of]

    return {
        "wall_seconds": wall,
        "walls": list(profile.walls),
        "walls_without_profiler": list(profile.plain),
        "ceilings": {
            "bytes_per_second": profile.ceilings.bandwidth,
            "flops_per_second": {str(t).removeprefix("torch."): r for t, r in profile.ceilings.rates.items()},
        },
        "programs": table(programs(parts)),
        "nodes" if by_node else "ops": table(parts),
        "kernels": [{"name": k.name, "calls": k.calls, "seconds": k.seconds} for k in profile.kernels],
        "memory": {name: arena(plan) for name, plan in plans.items()},
    }
