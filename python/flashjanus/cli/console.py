"""The output of a command: results go to stdout, notes and progress to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flashjanus.errors import OutputError


class Console:
    """stdout carries results only (text, or one JSON object with `json`); stderr carries notes and progress."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self.json = json
        self.quiet = quiet
        self.so_far: tuple[str, Mapping[str, Any]] | None = None
        """Words and JSON facts about the work done so far, which an error message adds."""
        self.interrupt: int = signal.SIGINT
        """The signal that ended the command, if one did."""
        self._interrupted = False
        self._holding = False
        self._bar: Any = None

    def listen_for_interrupt(self) -> None:
        """On Ctrl-C, remember it and raise KeyboardInterrupt, unless this process was started to ignore it.

        SIGTERM is treated the same, since `timeout`, containers and batch systems end a process with it.
        """

        def remember(number: int, _frame: object) -> None:
            again, self._interrupted = self._interrupted, True
            self.interrupt = number
            if again or not self._holding:
                raise KeyboardInterrupt

        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                signal.signal(number, remember)

    def check_interrupt(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C, in case library code (imports, destructors) swallowed the first one."""
        if self._interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Delay the first Ctrl-C in this block to its end, so that the work and the report of it are not separated."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self.check_interrupt()

    def text(self, text: str, end: str = "\n") -> None:
        """Print and flush `text` on stdout, so that streams show at once. Print nothing if the result is JSON."""
        if self.json:
            return
        if self._bar is not None:  # the bar is on the same line of the terminal
            self._bar.clear()
        _write(text + end)
        if self._bar is not None:
            self._bar.refresh()

    def result(self, value: Mapping[str, Any]) -> None:
        """Print `value` as one line of JSON on stdout. Print nothing if the result is text."""
        if self.json:
            _write(json.dumps(value, allow_nan=False) + "\n")

    def note(self, message: str) -> None:
        """Something the user should know even in a pipe, on stderr."""
        if not self.quiet:
            print(f"flashjanus: {message}", file=sys.stderr, flush=True)

    def status(self, message: str) -> None:
        """Say what happens now, on a terminal only."""
        if self.interactive:
            self.note(message)

    def error(self, kind: str, message: str) -> None:
        """Print one line on stderr, and with `json` {"error": {"type", "message"}} on stdout. Both include `so_far`."""
        words, facts = self.so_far or ("", {})
        line = " ".join(f"{message}{words}".split("\n"))
        prefix = "" if kind == "Interrupted" else "error: "
        if sys.stderr is not None:
            print(f"flashjanus: {prefix}{line}", file=sys.stderr, flush=True)
        self.so_far = None
        self.result({"error": {"type": kind, "message": message}, **facts})

    def leave(self) -> None:
        """Print the words of `so_far` if the command ends without calling `error`."""
        words, self.so_far = (self.so_far or ("", {}))[0], None
        if words and sys.stderr is not None:
            print(f"flashjanus: {words.removeprefix('; ')}", file=sys.stderr, flush=True)

    @property
    def interactive(self) -> bool:
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()

    @contextmanager
    def progress(self, total: int, label: str, unit: str = "step") -> Iterator[Callable[[int], None]]:
        """A function that takes the number of units done so far and draws them on a terminal."""
        if not self.interactive:
            yield lambda done: None
            return
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

        with tqdm(total=total, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar:
            self._bar = bar
            try:
                yield lambda done: bar.update(done - bar.n) and None
            finally:
                self._bar = None

    def flush(self) -> None:
        _write("")


def silence_stdout() -> None:
    """Redirect stdout to the null device, so that the interpreter's flush at exit does not fail."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _write(text: str) -> None:
    if sys.stdout is None:  # the process was started with stdout closed
        return
    try:
        sys.stdout.write(_encodable(text, sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def _encodable(text: str, encoding: str | None) -> str:
    """`text` with \\escapes for characters that the terminal's encoding cannot represent."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
