"""Parse the command line, run the command, and turn every expected failure into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from flashjanus import __version__
from flashjanus.cli import (
    ask,
    batch,
    bench,
    demo,
    doctor,
    eval,
    generate,
    inspect,
    plan,
    profile,
    quality,
    quantize,
    random_weights,
    schedule,
    serve,
)
from flashjanus.cli.console import Console, silence_stdout
from flashjanus.errors import FlashJanusError, InputError

EXIT_ERROR = 2
SIGNALED = 128  # plus the number of the signal, as shells report it: 130 for Ctrl-C
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

COMMANDS = (
    demo,
    generate,
    ask,
    batch,
    serve,
    eval,
    inspect,
    quantize,
    random_weights,
    plan,
    bench,
    quality,
    schedule,
    profile,
    doctor,
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `InputError`, so that usage errors are reported like all other errors."""

    def __init__(self, **options: object) -> None:
        # Abbreviated options would make every new option a breaking change.
        super().__init__(**{**options, "allow_abbrev": False})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="flashjanus",
        description="Draw images from prompts and answer questions about images with JanusFlow.",
    )
    parser.add_argument("--version", action="version", version=f"flashjanus {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit code.

    0: success. 1: `doctor` found that the engine cannot run, rows of a `batch` have no result, no request of `bench
    serve` succeeded, or a mode of `quality` exceeds --bound. 2: any other error. 130: Ctrl-C. 143: SIGTERM. 141: the
    pipe was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    console = Console(json="--json" in options, quiet="--quiet" in options)
    owns_process = argv is None
    if owns_process:
        console.listen_for_interrupt()
    try:
        try:
            code = _dispatch(arguments, console)
        except FlashJanusError as error:
            console.error(type(error).__name__, str(error))
            code = EXIT_ERROR
        except KeyboardInterrupt:
            if owns_process:  # A second Ctrl-C during the exit would print a traceback.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
            console.error("Interrupted", "interrupted")
            code = SIGNALED + console.interrupt
        console.flush()
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except FlashJanusError as error:  # stdout itself cannot be written, so only stderr is used.
        silence_stdout()
        Console(json=False, quiet=False).error(type(error).__name__, str(error))
        return EXIT_ERROR
    finally:
        console.leave()
    if owns_process and code > SIGNALED:
        # If the exception passed through exec() of a string, CPython would die of SIGINT instead of exiting.
        os._exit(code)
    return code


def _dispatch(arguments: list[str], console: Console) -> int:
    for position, argument in enumerate(arguments, 1):
        # Python passes undecodable bytes as lone surrogates, which neither tokenizers nor PNG text can hold.
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise InputError(
                f"argument {position} is not valid text: {argument!a}; expected {sys.getfilesystemencoding()}, "
                "retype it or rename the file"
            )
    try:
        parsed = build_parser().parse_args(arguments)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    code: int = parsed.run(parsed, console)
    return code
