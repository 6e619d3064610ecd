"""Options of `flashjanus bench` and what they may be."""

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
    """`time` runs latency, throughput and ops. Returns where further suites go."""
    parser = commands.add_parser(
        "bench",
        help="time the model, its ops, other implementations, and servers",
        description="Time the model's stages and ops, and other implementations beside them in the same run; or a "
        "server under a load.",
    )
    suites = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    latency = suites.add_parser(
        "latency",
        help="how long each stage takes",
        description="Time loading, the first image, the first token, and each stage of the model. With several values "
        "of a size, the first is the base and the others are tried one size at a time.",
    )
    throughput = suites.add_parser(
        "throughput",
        help="images and tokens a second",
        description="Images and tokens a second over batch sizes, each kind alone and both mixed (a flow step of all "
        "images, then 8 tokens of all conversations).",
    )
    for parser, batch in ((latency, [1]), (throughput, [1, 2, 4])):
        _add_sizes(parser, batch)
        parser.add_argument(
            "--stages",
            metavar="NAME[,NAME]",
            help="time only these, e.g. step,token; import and start, fresh processes, only where they are named",
        )
        parser.add_argument("--rounds", type=count, default=5, metavar="N", help="turns of everything (default: 5)")
        parser.add_argument(
            "--minutes",
            type=minutes,
            default=15.0,
            metavar="M",
            help="begin no round that would end later (default: 15)",
        )
        _add_peers(parser)
    ops = suites.add_parser(
        "ops",
        help="every implementation of every op",
        description="Time every implementation of every op at the sizes of the model's own plans, against the ceilings "
        "of this machine, measured first. * marks what the plan chose.",
    )
    _add_sizes(ops, [1])
    ops.add_argument("--ops", metavar="NAME[,NAME]", help="time only these")
    for parser in (latency, throughput, ops):
        repeats = 3 if parser is not ops else 7
        parser.add_argument(
            "--repeats", type=count, default=repeats, metavar="N", help=f"samples in a round (default: {repeats})"
        )
        add_report_options(parser)
        add_model_options(parser)
        parser.add_argument("--random-weights", choices=RANDOM, help="instead of --model: random weights of this size")
        parser.set_defaults(run=time)
    two = suites.add_parser(
        "compare",
        help="which differences of two reports exceed the noise",
        description="Compare two files of --json. A difference exceeds the noise where the 95 % interval of B's time "
        "over A's (Mann and Whitney's, over medians of rounds) lies beyond the margin.",
    )
    two.add_argument("before", metavar="A.json")
    two.add_argument("after", metavar="B.json")
    two.add_argument(
        "--margin",
        type=_percent,
        default=5.0,
        metavar="PERCENT",
        help="by which two runs of the same code may differ, which no interval from within a run can tell (default: 5)",
    )
    two.add_argument("--json", action="store_true", help="one JSON object on stdout, errors included")
    two.add_argument("--quiet", action="store_true", help="no notes on stderr")
    two.set_defaults(run=compare)
    one = suites.add_parser(
        "show",
        help="a report again, as a table for a document or a picture",
        description="Print the table of a file of --json, or the one that a document is to hold.",
    )
    one.add_argument("file", metavar="FILE.json")
    one.add_argument("--markdown", action="store_true", help="as a Markdown table, with where its numbers are from")
    one.add_argument(
        "--goal",
        action="append",
        default=[],
        type=_goal,
        metavar="STAGE=GOAL",
        help="with --markdown: what a stage is to reach, 2x (times as fast as the others) or 1.5s; repeatable",
    )
    one.add_argument("--plot", metavar="FILE.svg", help="draw it")
    one.add_argument("--quiet", action="store_true", help="no notes on stderr")
    one.set_defaults(run=show)
    return suites


def _add_sizes(parser: argparse.ArgumentParser, batch: list[int]) -> None:
    group = parser.add_argument_group("sizes", "one value, or several separated by commas")
    shown = ",".join(map(str, batch))
    group.add_argument(
        "--batch", type=_sizes, default=batch, metavar="N", help=f"images or conversations at once (default: {shown})"
    )
    group.add_argument("--prompt-tokens", type=_sizes, default=[40], metavar="N", help="of a prompt (default: 40)")
    group.add_argument("--chat-tokens", type=_sizes, metavar="N", help="of a conversation (default: 620, or what fits)")
    group.add_argument("--steps", type=_sizes, default=[30], metavar="N", help="Euler steps of an image (default: 30)")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("others, in turns with flashjanus")
    group.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=PEERS,
        help="official: the official code, eager or compiled; "
        "transformers: its generate with a static cache on the language model; diffusers: its AutoencoderKL on our "
        "weights; torch: the same plans on torch's implementations alone; repeatable",
    )
    group.add_argument("--official-repo", metavar="PATH", help="checkout of deepseek-ai/Janus")
    group.add_argument("--official-script", metavar="PATH", help="script that drives it and prints a JSON line")
    group.add_argument(
        "--official-python",
        metavar="PATH",
        default=sys.executable,
        help="Python that has diffusers, or what the official code needs (default: this one)",
    )


def add_report_options(parser: argparse.ArgumentParser, drawn: str = "draw it") -> argparse._ArgumentGroup:
    """Where a report goes; the group, for further options."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="all samples, machine, versions, commit "
        "and command as JSON into FILE; without FILE one JSON object on stdout, errors included",
    )
    group.add_argument("--plot", metavar="FILE.svg", help=drawn)
    group.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
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
