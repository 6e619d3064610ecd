"""Where a command's words go: results to stdout, everything said along the way to stderr."""

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
        """What an error is to say besides: in words, and as JSON."""
        self.interrupt: int = signal.SIGINT
        """The signal that ended the command, where one has."""
        self._interrupted = False
        self._holding = False
        self._bar: Any = None

    def listen_for_interrupt(self) -> None:
        """Remember Ctrl-C beside raising KeyboardInterrupt, unless this process was started to ignore it; the same for
        SIGTERM, by which `timeout` and whoever stops a container or a batch job end a process."""

        def remember(number: int, _frame: object) -> None:
            again, self._interrupted = self._interrupted, True
            self.interrupt = number
            if again or not self._holding:
                raise KeyboardInterrupt

        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is default:
                signal.signal(number, remember)

    def check_interrupt(self) -> None:
        """KeyboardInterrupt if there was a Ctrl-C: library code (imports, destructors) may have swallowed the first."""
        if self._interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """The first Ctrl-C in this block is heard at its end: what is done and what is said of it go together."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self.check_interrupt()

    def text(self, text: str, end: str = "\n") -> None:
        """`text` on stdout at once, so that a stream is seen as it comes; nothing when the result is JSON."""
        if self.json:
            return
        if self._bar is not None:  # it is on the same line of the same terminal
            self._bar.clear()
        _write(text + end)
        if self._bar is not None:
            self._bar.refresh()

    def result(self, value: Mapping[str, Any]) -> None:
        """`value` as one line of JSON on stdout; nothing when the result is text."""
        if self.json:
            _write(json.dumps(value, allow_nan=False) + "\n")

    def note(self, message: str) -> None:
        """Something the user should know even in a pipe, on stderr."""
        if not self.quiet:
            print(f"flashjanus: {message}", file=sys.stderr, flush=True)

    def status(self, message: str) -> None:
        """What happens now, on a terminal only."""
        if self.interactive:
            self.note(message)

    def error(self, kind: str, message: str) -> None:
        """One line on stderr; with `json` also {"error": {"type", "message"}} on stdout; both with what is so far."""
        words, facts = self.so_far or ("", {})
        line = " ".join(f"{message}{words}".split("\n"))
        prefix = "" if kind == "Interrupted" else "error: "
        if sys.stderr is not None:
            print(f"flashjanus: {prefix}{line}", file=sys.stderr, flush=True)
        self.so_far = None
        self.result({"error": {"type": kind, "message": message}, **facts})

    def leave(self) -> None:
        """Say what is so far, where something else than `error` ends the command."""
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
    """Point stdout at nothing, so that the interpreter's own flush at exit has nothing to complain about."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _write(text: str) -> None:
    if sys.stdout is None:  # started with stdout closed
        return
    try:
        sys.stdout.write(_encodable(text, sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def _encodable(text: str, encoding: str | None) -> str:
    """`text` with \\escapes for what the terminal's encoding cannot hold."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
