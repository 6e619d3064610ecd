"""Options that several commands share, and the loading of the model that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus.cli.console import Console
from flashjanus.errors import InputError
from flashjanus.sampling.fields import Options, options_of
from flashjanus.sampling.options import ImageOptions

if TYPE_CHECKING:
    from flashjanus import JanusFlow
    from flashjanus.api.tensor_model import TensorModel
    from flashjanus.sampling.schedule import Sampler


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout, also for an error")
    group.add_argument("--quiet", action="store_true", help="print no progress and no notes on stderr")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="shapes", metavar="NAME|PATH", help="built-in name, folder or hub id (default: shapes)"
    )
    group.add_argument("--vae", metavar="PATH", help="folder, file or hub id of the VAE (default: the model's own)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, the CPU)")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    group.add_argument(
        "--vae-dtype",
        default="auto",
        help="dtype of the VAE: auto, float32 or bfloat16 (default: auto, the same as --dtype)",
    )
    group.add_argument(
        "--quantization",
        metavar="NAME",
        help="int8, or fp8 on newer GPUs: run the language model's linears in 8 bits; int4: decode in 4 bits (default: "
        "as the checkpoint is stored)",
    )
    group.add_argument(
        "--numerics", default="exact", help="exact, or official to round like the official code (default: exact)"
    )
    group.add_argument(
        "--attention",
        metavar="NAME[,NAME]",
        help="implementations of attention that may be used, in order of preference, e.g. native,torch (default: the "
        "fastest; flashjanus doctor lists them)",
    )
    group.add_argument(
        "--eager", action="store_true", help="on a GPU, launch each kernel on its own instead of replaying CUDA graphs"
    )
    group.add_argument(
        "--buckets",
        action="append",
        metavar="NAME=N[,N]",
        help="sizes that plans are made for; NAME is rows, prompt_tokens, steps or new_tokens; repeatable (flashjanus "
        "plan lists them)",
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def add_adapter_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--adapter", action="append", default=[], dest="adapters", metavar="[NAME=]PATH", help=what)


def add_options(
    parser: argparse.ArgumentParser, options: type[Options], group: str | None = None, about: str | None = None
) -> None:
    """Add a flag for each option, or each of one group. Sampling options get a heading, with the text `about`."""
    headed: argparse._ActionsContainer | None = None
    for name, option in options_of(options, group).items():
        if option.flag is None:
            continue
        if option.group == "sampling" and headed is None:
            headed = parser.add_argument_group("sampling", about)
        add_option(headed if option.group == "sampling" and headed else parser, options, name)


def add_option(parser: argparse._ActionsContainer, options: type[Options], name: str, default: Any = None) -> None:
    """Add the flag of one option. Without `default`, a sampling option gets its default from the model."""
    option = options_of(options)[name]
    shown = option.default if default is None else default
    facts: dict[str, Any] = {"dest": name, "help": option.help(name, shown)}
    if option.kind is bool:
        parser.add_argument(option.spelled(name), action="store_true", **facts)
        return
    if option.several and option.kind is str:
        facts |= {"action": "append", "help": f"{facts['help']}; repeatable"}
    parser.add_argument(
        option.spelled(name),
        type=option.parse or option.kind,
        nargs=option.length,
        metavar=option.metavar,
        default=None if default is None and option.group == "sampling" else shown,
        **facts,
    )


def given(args: argparse.Namespace, options: type[Options], group: str | None = None) -> dict[str, Any]:
    """The options that have a value on this command line, by name."""
    values = {name: getattr(args, name, None) for name in options_of(options, group)}
    return {name: value for name, value in values.items() if value is not None}


def sampler_of(args: argparse.Namespace) -> Sampler:
    """The sampler that the sampling options describe. Raises InputError."""
    from flashjanus.sampling import presets

    return presets.sampler(**given(args, ImageOptions, "sampling"))


def recipe(sampler: Sampler) -> dict[str, Any]:
    """Steps and guidance, and every other sampling option that differs from its default."""
    default = asdict(type(sampler)())
    chosen = asdict(sampler)
    facts = {"steps": chosen.pop("num_inference_steps"), "guidance": chosen.pop("guidance_scale")}
    return facts | {name: value for name, value in chosen.items() if value != default[name]}


MAX_THREADS = 1024
"""OpenMP crashes if the system refuses it a thread, so numbers that no machine has are refused first."""


def load_model(args: argparse.Namespace, console: Console, make: Callable[..., JanusFlow] | None = None) -> JanusFlow:
    """Load the model that the options describe. `make`, if given, builds it from the choices instead."""
    threads = threads_of(args)
    console.status(f"loading {args.model}")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from flashjanus import JanusFlow

    model = (make or partial(JanusFlow.from_pretrained, args.model, vae=args.vae))(**choices(args))
    console.check_interrupt()
    console.status(f"{model.name} on {model.why}, {model.numerics} numerics")
    return model


def threads_of(args: argparse.Namespace) -> int | None:
    """The number of CPU threads, or None if it is not given. Raises InputError."""
    threads: int | None = args.threads
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")
    if threads is not None and threads > MAX_THREADS:
        raise InputError(f"--threads must be at most {MAX_THREADS}, got {threads}")
    return threads


def adapters_of(args: argparse.Namespace, most: int | None = None) -> dict[str, str]:
    """Folders or hub ids of adapters by name. The default name is the last part of the path. Raises InputError."""
    given: list[str] = getattr(args, "adapters", [])
    if most is not None and len(given) > most:
        raise InputError(f"--adapter: expected at most {most}, got {len(given)}")
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (Path(text).name, text)
        if not name or not path or name in found:
            raise InputError(f"--adapter: expected NAME=PATH, each with a name of its own, got {text!r}")
        found[name] = path
    return found


def choices(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `JanusFlow.from_pretrained` that say how the model runs, as plain data."""
    adapters = adapters_of(args)
    return {
        **({"adapters": adapters} if adapters else {}),
        "device": args.device,
        "dtype": args.dtype,
        "vae_dtype": args.vae_dtype,
        "quantization": args.quantization,
        "numerics": args.numerics,
        "implementations": None if args.attention is None else {"attention": args.attention.split(",")},
        "cuda_graphs": not args.eager,
        "buckets": _buckets(args.buckets or []),
    }


def _buckets(given: list[str]) -> dict[str, list[int]]:
    """Bucket sizes by name. The model checks the names and the sizes."""
    sizes: dict[str, list[int]] = {}
    for text in given:
        name, _, numbers = text.partition("=")
        if not all(number.isdigit() for number in numbers.split(",")):
            raise InputError(f"--buckets: expected NAME=N[,N], e.g. rows=1,4, got {text!r}")
        sizes[name] = [int(number) for number in numbers.split(",")]
    return sizes


def model_facts(model: TensorModel) -> dict[str, Any]:
    """The facts about the model that every JSON result contains."""
    return {
        "model": model.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "numerics": model.numerics,
    }
