"""`flashjanus batch prompts.jsonl --out DIR`: draw and answer the rows of a file; a stopped run can be resumed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus.cli.console import Console
from flashjanus.cli.options import (
    adapters_of,
    add_adapter_option,
    add_model_options,
    add_option,
    add_output_options,
    choices,
    given,
    load_model,
    threads_of,
)
from flashjanus.errors import InputError, UnavailableError
from flashjanus.sampling.fields import Options, options_of
from flashjanus.sampling.options import ImageOptions, TokenOptions
from flashjanus.sampling.values import MAX_SEED, integer

if TYPE_CHECKING:
    from flashjanus.cluster.batch import Batch, Results

EXIT_INCOMPLETE = 1
SHOWN = 5
"""How many failures are reported during the run."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "batch",
        help="draw images and answer questions from a file",
        description='Draw images and answer questions from FILE, where each line is a JSON object: {"prompt": ...} '
        'asks for images, {"question": ..., "image": PATH} (or "images": [PATH, ...], relative to FILE) asks for an '
        'answer. A line may have an "id" (default: its line number) and may set any option of a request by its Python '
        "name, such as num_inference_steps. The options below apply to lines that do not set them. If you repeat the "
        "command, it does only the rows that have no result yet. The exit code is 1 if some rows have no result; "
        "failures.jsonl gives the reasons.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="file with one JSON object per line")
    parser.add_argument(
        "--out", metavar="DIR", help="output folder, which gets images/, records/, manifest.jsonl and failures.jsonl"
    )
    parser.add_argument(
        "--verify", metavar="DIR", help="instead of running, check the files of an earlier run against its manifest"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="base seed; each row's seed is derived from it and the row's id (default: 0)",
    )
    parser.add_argument("--strict", action="store_true", help="run nothing if any line is invalid")
    parser.add_argument("--redo", action="store_true", help="redo rows that have changed since they were done")
    for title, options in (("image options", ImageOptions), ("answer options", TokenOptions)):
        group = parser.add_argument_group(title)
        for name, option in options_of(options).items():
            if option.flag is not None and name != "seed":
                add_option(group, options, name)
    group = parser.add_argument_group("concurrency")
    group.add_argument(
        "--live-images", type=int, default=32, metavar="N", help="maximum number of images drawn at once (default: 32)"
    )
    group.add_argument(
        "--live-answers",
        type=int,
        default=64,
        metavar="N",
        help="maximum number of answers generated at once (default: 64)",
    )
    group = parser.add_argument_group("on a cluster")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="address of a Ray cluster, auto for the cluster that this machine belongs to, or local; every node needs "
        "FlashJanus, and the model, the adapters and the images of questions under the same paths; results are "
        "written on this machine",
    )
    group.add_argument("--replicas", type=int, metavar="N", help="number of model replicas (default: as many as fit)")
    group.add_argument("--replica-cpus", type=float, default=1, metavar="N", help="CPUs per replica (default: 1)")
    group.add_argument("--replica-gpus", type=float, default=0, metavar="N", help="GPUs per replica (default: 0)")
    add_adapter_option(
        parser,
        "LoRA adapter, a folder that PEFT wrote or a hub id; repeatable. Lines name one in their field adapter, with "
        "null for none. If only one is given, it also applies to lines without that field",
    )
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    if args.verify is not None:
        return _verify(args, console)
    if args.file is None or not args.out:
        raise InputError("expected FILE and --out DIR, or --verify DIR")
    integer("--seed", args.seed, 0, MAX_SEED)
    for flag, value in (("--live-images", args.live_images), ("--live-answers", args.live_answers)):
        integer(flag, value, 1, 10_000)
    from flashjanus.checkpoint.adapters import fingerprint
    from flashjanus.cluster.batch import Batch
    from flashjanus.cluster.folder import Folder
    from flashjanus.cluster.rows import Usual

    adapters = adapters_of(args)
    for_all = {"adapter": next(iter(adapters))} if len(adapters) == 1 else {}
    options = {"image": {**for_all, **_usual(args, ImageOptions)}, "answer": {**for_all, **_usual(args, TokenOptions)}}
    model = {"name": args.model, "vae": args.vae, **{name: choices(args)[name] for name in SAME}}
    folder = Folder(Path(args.out))
    console.status(f"reading {args.file}")
    prints = {name: fingerprint(source) for name, source in adapters.items()}
    batch = Batch.read(Path(args.file), Usual(options, args.seed, model, prints), folder, args.strict)
    with folder.writing():
        batch.resume(args.redo)
        try:
            if batch.pending:
                _run(args, batch, console)
        finally:
            counts = batch.close()
            words = ", ".join(f"{counts[name]} {name}" for name in ("done", "failed", "left"))
            console.so_far = f"; {words}; the same command continues", counts
    console.so_far = None
    console.text(f"{counts['rows']} rows: {words} ({counts['written']} now), in {folder.path}")
    if counts["failed"]:
        console.note(f"{counts['failed']} rows have no result: {folder.path / 'failures.jsonl'} says why")
    console.result({**counts, "folder": str(folder.path), "model": model, "adapters": adapters})
    return EXIT_INCOMPLETE if counts["failed"] else 0


SAME = ("dtype", "vae_dtype", "quantization", "numerics")
"""Model options that must not change within an output folder, besides the model's name and VAE."""


def _usual(args: argparse.Namespace, options: type[Options]) -> Mapping[str, Any]:
    found = {name: value for name, value in given(args, options).items() if name != "seed" and value is not False}
    options(**found).checked()
    return found


def _run(args: argparse.Namespace, batch: Batch, console: Console) -> None:
    with _results(args, batch, console) as results, console.progress(len(batch.pending), "batch", "row") as show:
        failed = len(batch.faults)

        def done(count: int) -> None:
            nonlocal failed
            show(count)
            if failed < len(batch.faults) <= SHOWN:
                last = [*batch.faults.values()][-1]
                console.note(f"{batch.file}: line {last.line}: {last.message}")
            failed = len(batch.faults)

        batch.run(results, console.uninterrupted, done)


@contextmanager
def _results(args: argparse.Namespace, batch: Batch, console: Console) -> Iterator[Results]:
    from flashjanus.scheduling.policy import Limits

    limits = Limits(images=args.live_images, answers=args.live_answers)
    if args.ray is not None:
        try:
            from flashjanus.cluster import connect, data
        except ModuleNotFoundError as error:
            if error.name not in ("ray", "pyarrow"):
                raise
            raise UnavailableError(
                f'{error.name} is not installed, which --ray needs: pip install "flashjanus[ray]"'
            ) from error
        source = data.Source(args.model, args.vae, choices(args), limits, threads_of(args))
        with connect.connected(args.ray):
            pool = data.Pool(args.replicas, args.replica_cpus, args.replica_gpus)
            yield data.results(batch.pending, batch.images, source, pool)
        return
    from flashjanus.cluster.items import items
    from flashjanus.serving.backend import ThreadBackend

    backend = ThreadBackend(load_model(args, console), limits)
    results = items(backend, batch.pending, batch.images, 2 * (args.live_images + args.live_answers))
    try:
        yield results
    finally:
        results.close()
        backend.close()


def _verify(args: argparse.Namespace, console: Console) -> int:
    if args.file is not None or args.out is not None:
        raise InputError("--verify: expected only a folder, without FILE and --out")
    from flashjanus.cluster.folder import verify

    found = verify(Path(args.verify))
    for one in found["damaged"]:
        console.text(f"damaged: {one['id'] or 'manifest'}: {one['reason']}")
    console.text(
        f"{found['verified']} items, {found['files']} files, {len(found['damaged'])} damaged; {found['failed']} rows "
        f"failed, {found['left']} are left; {len(found['unlisted'])} files are not in the manifest"
    )
    console.result(found)
    return EXIT_INCOMPLETE if found["damaged"] or found["failed"] or found["left"] else 0
