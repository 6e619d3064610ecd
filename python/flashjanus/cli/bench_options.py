"""The options of `flashjanus bench` and the checks of their values."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from flashjanus.cli.console import Console
from flashjanus.cli.options import add_model_options

PEERS = ("official", "official-compiled", "transformers", "diffusers", "torch")
RANDOM = ("full", "thin", "shapes")
STDOUT = "-"
MOST = 1 << 20
Run = Callable[[argparse.Namespace, Console], int]


def add_suites(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], time: Run, compare: Run, show: Run
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Add the suites. `time` runs latency, throughput and ops. Returns the group to which other suites are added."""
    parser = commands.add_parser(
        "bench",
        help="time the model, its ops, other implementations, and servers",
        description="Time the model's stages and ops, compare them with other implementations in the same run, or "
        "measure a server under load.",
    )
    suites = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    latency = suites.add_parser(
        "latency",
        help="time each stage of the model",
        description="Time loading, the first image, the first token, and each stage of the model. If a size has "
        "several values, the first is the baseline, and the others are tried while all other sizes keep their first "
        "value.",
    )
    throughput = suites.add_parser(
        "throughput",
        help="measure images and tokens per second",
        description="Measure images and tokens per second at several batch sizes: images alone, answers alone, and "
        "both mixed (one flow step of all images, then 8 tokens of all conversations).",
    )
    for parser, batch in ((latency, [1]), (throughput, [1, 2, 4])):
        _add_sizes(parser, batch)
        parser.add_argument(
            "--stages",
            metavar="NAME[,NAME]",
            help="time only these stages, e.g. step,token; import and start, which need new processes, run only if "
            "named",
        )
        parser.add_argument(
            "--rounds",
            type=count,
            default=5,
            metavar="N",
            help="number of times that everything is measured, in turns (default: 5)",
        )
        parser.add_argument(
            "--minutes",
            type=minutes,
            default=15.0,
            metavar="M",
            help="begin no round that would end after this many minutes (default: 15)",
        )
        _add_peers(parser)
    ops = suites.add_parser(
        "ops",
        help="time every implementation of every op",
        description="Time every implementation of every op at the sizes of the model's own plans, and compare it with "
        "the ceilings of this machine, which are measured first. * marks the implementation that the plan chose.",
    )
    _add_sizes(ops, [1])
    ops.add_argument("--ops", metavar="NAME[,NAME]", help="time only these ops")
    for parser in (latency, throughput, ops):
        repeats = 3 if parser is not ops else 7
        parser.add_argument(
            "--repeats", type=count, default=repeats, metavar="N", help=f"samples per round (default: {repeats})"
        )
        add_report_options(parser)
        add_model_options(parser)
        parser.add_argument("--random-weights", choices=RANDOM, help="random weights of this size instead of --model")
        parser.set_defaults(run=time)
    two = suites.add_parser(
        "compare",
        help="show which differences between two reports exceed the noise",
        description="Compare two reports that --json wrote. A difference exceeds the noise if the 95 % confidence "
        "interval of the ratio of B's time to A's (Mann-Whitney, over the medians of the rounds) lies outside the "
        "margin.",
    )
    two.add_argument("before", metavar="A.json")
    two.add_argument("after", metavar="B.json")
    two.add_argument(
        "--margin",
        type=_percent,
        default=5.0,
        metavar="PERCENT",
        help="how much two runs of the same code may differ; the samples of one run cannot show this (default: 5)",
    )
    two.add_argument("--json", action="store_true", help="print one JSON object on stdout, also for an error")
    two.add_argument("--quiet", action="store_true", help="print no notes on stderr")
    two.set_defaults(run=compare)
    one = suites.add_parser(
        "show",
        help="print or plot a report",
        description="Print the table of a report that --json wrote, for the terminal or as Markdown, or plot it.",
    )
    one.add_argument("file", metavar="FILE.json")
    one.add_argument(
        "--markdown", action="store_true", help="print a Markdown table that states where its numbers come from"
    )
    one.add_argument(
        "--goal",
        action="append",
        default=[],
        type=_goal,
        metavar="STAGE=GOAL",
        help="with --markdown: goal of a stage, 2x (twice as fast as the others) or 1.5s; repeatable",
    )
    one.add_argument("--plot", metavar="FILE.svg", help="write a plot to FILE.svg")
    one.add_argument("--quiet", action="store_true", help="print no notes on stderr")
    one.set_defaults(run=show)
    return suites


def _add_sizes(parser: argparse.ArgumentParser, batch: list[int]) -> None:
    group = parser.add_argument_group("sizes", "Each takes one value, or several separated by commas.")
    shown = ",".join(map(str, batch))
    group.add_argument(
        "--batch", type=_sizes, default=batch, metavar="N", help=f"images or conversations at once (default: {shown})"
    )
    group.add_argument(
        "--prompt-tokens", type=_sizes, default=[40], metavar="N", help="tokens in a prompt (default: 40)"
    )
    group.add_argument(
        "--chat-tokens", type=_sizes, metavar="N", help="tokens in a conversation (default: 620, or as many as fit)"
    )
    group.add_argument("--steps", type=_sizes, default=[30], metavar="N", help="Euler steps per image (default: 30)")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other implementations, in turns with flashjanus")
    group.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=PEERS,
        help="official and official-compiled: the official code; transformers: the language model with its generate "
        "and a static cache; diffusers: its AutoencoderKL with our weights; torch: our plans with torch's "
        "implementations only; repeatable",
    )
    group.add_argument("--official-repo", metavar="PATH", help="checkout of deepseek-ai/Janus")
    group.add_argument(
        "--official-script", metavar="PATH", help="script that runs the official code and prints one line of JSON"
    )
    group.add_argument(
        "--official-python",
        metavar="PATH",
        default=sys.executable,
        help="Python interpreter with diffusers, or with the packages of the official code (default: this one)",
    )


def add_report_options(
    parser: argparse.ArgumentParser, drawn: str = "write a plot to FILE.svg"
) -> argparse._ArgumentGroup:
    """Add the options that say where a report goes. Returns their group, for further options."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write all samples, the machine, versions, commit and command as JSON to FILE; without FILE, print one "
        "JSON object on stdout, also for an error",
    )
    group.add_argument("--plot", metavar="FILE.svg", help=drawn)
    group.add_argument("--quiet", action="store_true", help="print no progress and no notes on stderr")
    return group


def _goal(text: str) -> tuple[str, str]:
    stage, equals, goal = text.partition("=")
    if not (stage and equals and goal):
        raise argparse.ArgumentTypeError(f"expected STAGE=GOAL, e.g. step=2x, got {text!r:.40}")
    return stage, goal


def _sizes(text: str) -> list[int]:
    return list(dict.fromkeys(count(part) for part in text.split(",")))


def count(text: str) -> int:
    return _integer(text, 1)


def count_or_none(text: str) -> int:
    return _integer(text, 0)


def minutes(text: str) -> float:
    return _number(text, 0, 1e6)


def bound(text: str) -> float:
    return _number(text, 1e-6, 1e6)


def _percent(text: str) -> float:
    return _number(text, 0, 1000)


def _integer(text: str, low: int) -> int:
    if not text.isdecimal() or not low <= int(text[:10]) <= MOST:
        raise argparse.ArgumentTypeError(f"expected an integer from {low} to {MOST}, got {text!r:.40}")
    return int(text)


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r:.40}")
    return value
