"""`flashjanus bench serve`: put load on any server with OpenAI's API and measure its latencies."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flashjanus import __version__
from flashjanus.cli.bench_options import STDOUT, add_report_options, bound, count, count_or_none
from flashjanus.cli.console import Console
from flashjanus.cli.machine import machine_facts
from flashjanus.cli.reports import check_files, publish
from flashjanus.disk.reading import parse_object, read_json
from flashjanus.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from flashjanus.measure.bench.serving.endpoint import Target
    from flashjanus.measure.bench.serving.load import Call
    from flashjanus.measure.bench.serving.sample import Sample
    from flashjanus.measure.bench.serving.serve_report import ServeReport

CONCURRENCY, REQUESTS, SECONDS = 8, 64, 60.0
FAILED = 1
"""The exit code of a run in which no request succeeded."""
PARTIAL_IMAGES = range(4)


def add_suite(suites: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = suites.add_parser(
        "serve",
        help="measure a server's latencies under load",
        description="Send requests to a server with OpenAI's API, N at a time (closed loop) or at Poisson times (open "
        "loop, where latencies count from the time a request was due). Print rates, the share of requests that met "
        "their deadline, and percentiles of the time to admission, first token, first partial image, image, each "
        "further token, and the whole reply.",
    )
    parser.add_argument(
        "--base-url",
        default="http://127.0.0.1:8000/v1",
        metavar="URL",
        help="URL of the endpoint, including /v1 (default: http://127.0.0.1:8000/v1)",
    )
    parser.add_argument("--model", metavar="NAME", help="model to ask for (default: the first that the endpoint lists)")
    parser.add_argument("--api-key", metavar="KEY", help="API key (default: $OPENAI_API_KEY, or none)")
    _add_load(parser)
    group = parser.add_argument_group("requests")
    group.add_argument("--no-stream", action="store_true", help="ask for whole answers instead of streams")
    group.add_argument(
        "--partial-images",
        type=_partial_images,
        metavar="N",
        help="partial images per image, 0 to 3 (default: the endpoint's)",
    )
    group.add_argument(
        "--max-tokens", type=count, default=64, metavar="N", help="maximum tokens in an answer (default: 64)"
    )
    for kind, example in (("image", '{"size": "512x512"}'), ("chat", '{"temperature": 0}')):
        group.add_argument(
            f"--{kind}-options",
            type=_fields,
            default={},
            metavar="JSON",
            help=f"further fields of {'an image' if kind == 'image' else 'a chat or vision'} request, e.g. '{example}'",
        )
    group.add_argument(
        "--timeout", type=bound, default=300.0, metavar="S", help="maximum seconds for a request (default: 300)"
    )
    group = parser.add_argument_group("goodput")
    group.add_argument("--deadline-image", type=bound, metavar="S", help="deadline in seconds for a whole image")
    group.add_argument(
        "--deadline-token", type=bound, metavar="S", help="deadline in seconds for the first token of an answer"
    )
    add_report_options(parser)
    parser.set_defaults(run=run)


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--concurrency", type=count, metavar="N", help=f"number of requests at a time (default: {CONCURRENCY})"
    )
    how.add_argument("--rate", type=bound, metavar="R", help="requests per second, at Poisson times")
    group.add_argument(
        "--requests",
        type=count,
        metavar="M",
        help=f"total number of requests (default: {REQUESTS}, or as many as fit in --duration)",
    )
    group.add_argument(
        "--duration",
        type=bound,
        metavar="S",
        help=f"send no request after this many seconds (default: no limit; {SECONDS:g} with --rate)",
    )
    group.add_argument(
        "--mix",
        default="image=0.5,chat=0.5",
        metavar="KIND=W[,...]",
        help="weights of the kinds image, chat, and vision (questions about a picture) (default: image=0.5,chat=0.5)",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='file with one prompt per line: text for every kind, or {"kind": ..., "prompt": ...} (default: built in)',
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the kinds, prompts and times, not of the images (default: 0)",
    )
    group.add_argument(
        "--warmup",
        type=count_or_none,
        default=1,
        metavar="N",
        help="warm-up requests per kind, which do not count (default: 1)",
    )
    group.add_argument(
        "--in-flight",
        type=count,
        default=1000,
        metavar="N",
        help="with --rate: while this many requests are open, further ones are not sent and count as failed (default: "
        "1000)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    console.json = args.json == STDOUT
    check_files(args)
    from flashjanus.measure.bench.serving.contents import read_prompts
    from flashjanus.measure.bench.serving.load import MOST_CALLS, arrivals, calls, read_mix
    from flashjanus.measure.bench.serving.serve_report import ServeReport

    mix = read_mix(args.mix)
    prompts = read_prompts(args.prompts, [*mix])
    due: list[Any] = [None] * (args.requests or (REQUESTS if args.duration is None else MOST_CALLS))
    if args.rate is not None:
        seconds = args.duration if args.duration or args.requests else SECONDS
        due = [*arrivals(args.rate, args.seed, seconds=seconds, count=args.requests)]
        if not due:
            raise InputError(f"--rate {args.rate:g}: no request would be sent within {seconds:g} s; raise --duration")
    first = [call for kind in mix for call in calls({kind: 1.0}, prompts, args.seed - 1, [None] * args.warmup)]
    target, samples = _measured(args, console, calls(mix, prompts, args.seed, due), first)
    deadlines = {"image": args.deadline_image, "token": args.deadline_token}
    report = ServeReport(
        _head(args, target), samples, {name: limit for name, limit in deadlines.items() if limit is not None}
    )
    publish(args, console, report.to_json(), str(report), report.svg)
    if not report.succeeded:
        console.note("no request succeeded")
    return 0 if report.succeeded else FAILED


def read(path: str) -> ServeReport | None:
    """Read a report that --json wrote. None if it is from another suite. Raises InputError."""
    from flashjanus.measure.bench.serving.serve_report import ServeReport

    data = read_json(Path(path))
    return ServeReport.of_json(data, path) if data.get("kind") == "serve" else None


def _measured(
    args: argparse.Namespace, console: Console, load: list[Call], first: list[Call]
) -> tuple[Target, list[Sample]]:
    try:
        from flashjanus.measure.bench.serving import drive
        from flashjanus.measure.bench.serving.endpoint import Client, Target
    except ModuleNotFoundError as error:
        if error.name != "httpx":
            raise
        words = 'bench serve needs httpx, which is not installed: pip install "flashjanus[server]"'
        raise UnavailableError(words) from error

    target = Target(
        base_url=_base_url(args.base_url),
        model=args.model or "",
        api_key=_api_key(args.api_key),
        stream=not args.no_stream,
        partial_images=args.partial_images,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        options={"image": args.image_options, "chat": args.chat_options},
    )

    async def measured() -> tuple[Target, list[Sample]]:
        with _cancelled_by_signals(console):
            return await sent()

    async def sent() -> tuple[Target, list[Sample]]:
        async with Client(target) as client:
            if args.model is None:
                client.target = target.named(await drive.first_model(client))
            console.status("warming up")
            await drive.warm_up(client, first)
            with console.progress(len(load), "requests") as show:
                if args.rate is not None:
                    return client.target, await drive.open_loop(client, load, args.in_flight, show)
                workers = args.concurrency or CONCURRENCY
                return client.target, await drive.closed_loop(client, load, workers, show, seconds=args.duration)

    import asyncio

    try:
        return asyncio.run(measured())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextmanager
def _cancelled_by_signals(console: Console) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM cancel the current task, if the console listens for them. An exception from a signal
    handler could be raised in any task, and the other tasks would never be ended."""
    import asyncio

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end(number: int, _frame: object) -> None:
        console.interrupt = number
        loop.call_soon_threadsafe(task.cancel)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = {n: it for n, it in before.items() if callable(it) and it is not signal.default_int_handler}
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _base_url(text: str) -> str:
    """The URL, with /v1 added if it has no path. Raises InputError."""
    try:
        parts = urlsplit(text)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        bad = True
    if bad or not text.isprintable() or " " in text or parts.query or parts.fragment or parts.username is not None:
        raise InputError(f"--base-url: expected http://HOST[:PORT]/v1 or https://..., got {text!r:.80}")
    return text.rstrip("/") if parts.path.strip("/") else f"{text.rstrip('/')}/v1"


def _api_key(given: str | None) -> str | None:
    key = os.environ.get("OPENAI_API_KEY") if given is None else given
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("--api-key: expected printable ASCII characters without spaces, because a header holds it")
    return key or None


def _head(args: argparse.Namespace, target: Target) -> dict[str, Any]:
    """The facts that are needed to repeat the run. `machine` is the client's."""
    from flashjanus.measure.words import commit

    if args.rate is None:
        load = f"closed loop of {args.concurrency or CONCURRENCY}"
    else:
        load = f"open loop of {args.rate:g} requests/s"
    return {
        "kind": "serve",
        "flashjanus": __version__,
        "commit": commit(),
        "command": shlex.join(_without_key(sys.argv)),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": {"python": platform.python_version()},
        "endpoint": target.base_url,
        "model": target.model,
        "load": f"{load}, mix {args.mix}, seed {args.seed}",
    }


def _without_key(arguments: list[str]) -> list[str]:
    """The command line without the API key, since reports are shared with others."""
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument == "--api-key" and i + 1 < len(found):
            found[i + 1] = "..."
        elif argument.startswith("--api-key="):
            found[i] = "--api-key=..."
    return found


def _partial_images(text: str) -> int:
    number = count_or_none(text)
    if number not in PARTIAL_IMAGES:
        raise argparse.ArgumentTypeError(f"expected 0 to {PARTIAL_IMAGES[-1]}, got {number}")
    return number


def _fields(text: str) -> dict[str, Any]:
    try:
        return parse_object(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
