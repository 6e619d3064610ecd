"""`flashjanus serve`: serve the model over HTTP with OpenAI's API."""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus.cli.bench_options import count
from flashjanus.cli.console import Console
from flashjanus.cli.options import (
    adapters_of,
    add_adapter_option,
    add_model_options,
    add_output_options,
    choices,
    load_model,
    threads_of,
)
from flashjanus.cli.serve_ray import add_ray_options, run_on_ray
from flashjanus.errors import FlashJanusError, InputError, UnavailableError
from flashjanus.sampling.options import PRESETS

if TYPE_CHECKING:
    from flashjanus.serving import AsyncEngine
    from flashjanus.serving.http import Settings

MOST_PORTS = 65_535
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine. A foreign web page can make its own host name resolve to 127.0.0.1, but it cannot send one of
these names as its host."""
KEYS = "FLASHJANUS_API_KEYS"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve the model over HTTP, as OpenAI's API",
        description="Serve images and answers under /v1, as OpenAI's clients expect. Ctrl-C or SIGTERM stops the "
        "server after the running requests are finished. The page /docs describes the fields.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (default: 8000)")
    parser.add_argument(
        "--served-name",
        action="append",
        metavar="NAME",
        dest="names",
        help="name by which requests may ask for the model; repeatable",
    )
    _add_access(parser.add_argument_group("access"))
    _add_limits(parser.add_argument_group("limits"))
    parser.add_argument(
        "--preset",
        default="exact",
        choices=tuple(PRESETS),
        help="preset for requests that name neither a preset nor a quality (default: exact)",
    )
    parser.add_argument(
        "--rough-previews",
        action="store_false",
        dest="full_previews",
        help="make partial images with a linear map, which costs almost nothing, instead of the VAE",
    )
    parser.add_argument("--log-prompts", action="store_true", help="write prompts and messages to the log")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="lowest level that is logged; the log goes to stderr as JSON (default: info)",
    )
    parser.add_argument("--ui", action="store_true", help="also serve a web page that draws and answers, at /ui")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run the model in the server's process instead of a worker process that is restarted if it dies",
    )
    add_ray_options(parser.add_argument_group("on a cluster"))
    add_adapter_option(
        parser, "LoRA adapter that requests may name as their model or in their field `adapter`; repeatable"
    )
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help=f"file with one API key per line, in addition to those in ${KEYS} (default: no key is required)",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        dest="hosts",
        help="host name by which clients may address the server; repeatable (default: localhost and its addresses if "
        "the server listens on this machine only and has no keys, else any)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        metavar="URL",
        dest="origins",
        help="origin whose web pages may call the server, or * for any; repeatable",
    )
    group.add_argument(
        "--allow-images-from",
        action="append",
        metavar="HOST",
        dest="remote_hosts",
        help="host from which the server may fetch images that requests name by URL; .example.org allows all of its "
        "subdomains; repeatable (default: none)",
    )
    group.add_argument(
        "--allow-http-images", action="store_true", dest="remote_http", help="fetch such images over plain HTTP, too"
    )


LIMITS: tuple[tuple[str, str, float | None, str], ...] = (
    (
        "key_requests",
        "requests-per-key",
        None,
        "maximum number of open requests per key, or per address if there are no keys",
    ),
    ("body_bytes", "max-body", 67_108_864, "maximum bytes in the body of a request"),
    ("images", "max-images", 16, "maximum number of images in a conversation"),
    ("image_bytes", "max-image-bytes", 20_971_520, "maximum bytes of an image in a conversation"),
    ("image_pixels", "max-image-pixels", 50_000_000, "maximum pixels of an image in a conversation"),
    ("max_tokens", "max-tokens", None, "maximum tokens in an answer that a request may ask for"),
    ("default_tokens", "default-tokens", 1024, "maximum tokens in an answer if the request does not set it"),
    ("max_steps", "max-steps", None, "maximum number of steps that a request may ask for"),
    ("max_candidates", "max-candidates", 64, "largest best_of that a request may ask for"),
    ("max_side", "max-side", 2048, "longest image side in pixels that a request may ask for"),
    ("deadline", "deadline", 600.0, "maximum seconds for a request, including its time in the queue"),
    ("drain", "drain", 30.0, "seconds that running requests get to finish after SIGTERM"),
)
"""Numeric settings: name, flag, default (the same as in `Settings`, which --help must not import), meaning."""


def _add_limits(group: argparse._ArgumentGroup) -> None:
    for flag, usual, meaning in (
        ("live-images", 32, "maximum number of images drawn at once"),
        ("live-answers", 64, "maximum number of answers generated at once"),
        ("queue", 256, "maximum number of waiting requests; others are refused with status 429"),
    ):
        group.add_argument(f"--{flag}", type=count, default=usual, metavar="N", help=f"{meaning} (default: {usual})")
    for name, flag, default, meaning in LIMITS:
        kind = float if isinstance(default, float) else count
        shown = "" if default is None else f" (default: {default:g})" if kind is float else f" (default: {default})"
        group.add_argument(f"--{flag}", type=kind, dest=name, metavar="N", help=meaning + shown)


def settings_of(args: argparse.Namespace) -> Settings:
    """The server's settings from the command line and the environment. Raises InputError."""
    from flashjanus.serving.http.settings import Settings, read_keys

    given: dict[str, Any] = {}
    for field in fields(Settings):
        value = getattr(args, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    for name, flag, _, _ in LIMITS:
        if name in given and not 0 < given[name] < float("inf"):
            raise InputError(f"--{flag}: expected more than 0, got {given[name]}")
    return Settings(**given, keys=read_keys(args.api_keys, os.environ.get(KEYS)))


LOOK = 1.0
"""Seconds between two checks of whether the engine is there."""
Wait = Callable[[float], bool]
PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "h11")
"""Packages of the extra "server"."""


def run(args: argparse.Namespace, console: Console) -> int:
    try:
        from flashjanus.serving.http.run import bound, is_local
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        words = f'serving needs {error.name}, which is not installed: pip install "flashjanus[server]"'
        raise UnavailableError(words) from error
    from flashjanus.serving.http.logs import set_up

    if not 0 <= args.port <= MOST_PORTS:
        raise InputError(f"--port: expected 0 to {MOST_PORTS}, got {args.port}")
    settings = settings_of(args)
    _check_adapters(args)
    if args.ray is not None:
        return run_on_ray(args, settings, console)
    with bound(args.host, args.port) as listening:
        if is_local(listening) and not settings.keys:
            settings = replace(settings, hosts=tuple(dict.fromkeys((*settings.hosts, *LOCAL, args.host.lower()))))
        if args.ui:
            import flashjanus.serving.ui  # noqa: F401  # reports a missing extra before the model is loaded
        import asyncio

        set_up(args.log_level)
        engine, wait = _engine(args, console)
        asyncio.run(serve_until_stopped(engine, wait, settings, listening, console, args.ui))
    return 0


def _check_adapters(args: argparse.Namespace) -> None:
    """Raises InputError for an adapter by whose name requests ask for the model itself."""
    for name in adapters_of(args):
        if name in (args.model, *(args.names or ())):
            raise InputError(
                f"--adapter: expected a name other than the model's, by which requests ask for it without an adapter, "
                f"got {name!r}; give NAME=PATH"
            )


def _engine(args: argparse.Namespace, console: Console) -> tuple[AsyncEngine, Wait | None]:
    """The engine, and a function that waits until a worker process has loaded the model.

    With --in-process, the function is None, and loading the model here may raise any FlashJanusError."""
    from flashjanus.scheduling.policy import Limits
    from flashjanus.serving import AsyncEngine, ProcessBackend
    from flashjanus.serving.http.logs import LOG

    limits = Limits(images=args.live_images, answers=args.live_answers, queued=args.queue)
    if args.in_process:
        LOG.info("loading %s", args.model)
        begun = time.monotonic()
        model = load_model(args, console)
        LOG.info("%s is ready after %.1f s of loading", model.name, time.monotonic() - begun)
        return AsyncEngine(model, limits), None
    threads = threads_of(args)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the worker process, which reads it when it starts
    backend = ProcessBackend(args.model, limits=limits, wait=False, vae=args.vae, **choices(args))
    return AsyncEngine(backend), backend.wait_ready


async def serve_until_stopped(
    engine: AsyncEngine,
    wait: Wait | None,
    settings: Settings,
    listening: socket.socket,
    console: Console,
    ui: bool = False,
) -> None:
    """Serve on a socket until a signal comes, then finish the running requests.

    wait: waits at most the given number of seconds and returns whether the model is loaded. Its FlashJanusError, if the
    model cannot be loaded or is lost, stops the server and is raised.
    """
    import asyncio

    from flashjanus.serving.http import create_app
    from flashjanus.serving.http.run import Server, is_local, url_of

    app = create_app(engine, settings)
    if ui:
        from flashjanus.serving.http.playground import add_playground

        add_playground(app)
    started, url = asyncio.Event(), url_of(listening)
    server = Server(app, started.set)
    over: list[FlashJanusError] = []

    async def watch() -> None:
        await started.wait()
        try:
            while wait is not None and not await asyncio.to_thread(wait, LOOK):
                pass
            tell()
            while wait is not None:
                await asyncio.sleep(LOOK)
                await asyncio.to_thread(wait, LOOK)
        except FlashJanusError as error:
            if not app.state.serving.draining:  # while draining, the engine is closed because the server stops
                over.append(error)
                server.stop()

    def tell() -> None:
        facts = engine.facts
        console.note(f"{facts.name} is served at {url}/v1 and described at {url}/docs")
        if ui:
            console.note(f"the playground is at {url}/ui")
        if not settings.keys and not is_local(listening):
            console.note(f"no API keys are set, and whoever reaches the server may use it; see --api-keys and ${KEYS}")
        about = {name: getattr(facts, name) for name in ("device", "dtype", "quantization")}
        console.result({"url": url, "model": facts.name, **about})

    async with engine:
        watching = asyncio.ensure_future(watch())
        await server.serve([listening])
        watching.cancel()
        await asyncio.wait([watching])
    if over:
        raise over[0]
