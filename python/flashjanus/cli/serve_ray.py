"""`flashjanus serve --ray ADDRESS`: the same application, served by replicas on a Ray cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flashjanus.cli.console import Console
from flashjanus.cli.options import choices, threads_of
from flashjanus.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from flashjanus.serving.http.settings import Settings


def add_ray_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="address of a Ray cluster, auto for the cluster that this machine belongs to, or local; every node needs "
        "FlashJanus, and the model and its adapters under the same paths",
    )
    group.add_argument(
        "--min-replicas", type=int, default=1, metavar="N", help="minimum number of replicas (default: 1)"
    )
    group.add_argument(
        "--max-replicas", type=int, default=1, metavar="N", help="maximum number of replicas (default: 1)"
    )
    group.add_argument("--replica-cpus", type=float, default=1, metavar="N", help="CPUs per replica (default: 1)")
    group.add_argument("--replica-gpus", type=float, default=0, metavar="N", help="GPUs per replica (default: 0)")


def run_on_ray(args: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Serve on Ray until stopped. Raises UnavailableError without ray, and InputError for an invalid option."""
    try:
        from flashjanus.cluster.run import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        words = f'--ray needs {error.name}, which is not installed: pip install "flashjanus[ray]"'
        raise UnavailableError(words) from error
    from pydantic import ValidationError

    from flashjanus.cluster.arguments import GRANTED, Arguments

    if args.ui:
        raise InputError("--ui: cannot be combined with --ray, whose replicas serve no pages")
    if args.port == 0:
        raise InputError("--port: expected a fixed port with --ray, got 0")
    try:
        arguments = Arguments(
            model=args.model,
            vae=args.vae,
            **choices(args),
            threads=threads_of(args),
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            max_queued_requests=args.queue,
            num_cpus=args.replica_cpus,
            num_gpus=args.replica_gpus,
            live_images=args.live_images,
            live_answers=args.live_answers,
            api_keys=args.api_keys,
            **{name: getattr(settings, name) for name in GRANTED},
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        where = "".join(f"--{name}: ".replace("_", "-") for name in wrong["loc"] if isinstance(name, str))
        raise InputError(f"{where}{wrong['msg'].removeprefix('Value error, ')}, got {wrong['input']!r:.80}") from error

    def begun() -> None:
        url = f"http://{args.host}:{args.port}"
        console.note(f"{args.model} is served at {url}/v1 and described at {url}/docs")
        console.result({"url": url, "model": args.model})

    console.status(f"starting {args.min_replicas} replicas of {args.model}")
    run(args.ray, args.host, args.port, arguments, begun)
    return 0
