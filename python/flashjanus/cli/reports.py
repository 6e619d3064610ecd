"""Publish the reports of `bench`, `bench serve` and `quality` as JSON, as text, and as a plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from flashjanus.cli.bench_options import STDOUT
from flashjanus.cli.console import Console
from flashjanus.disk.writing import check_writable, write_json, write_text
from flashjanus.errors import InputError


def check_plot(path: str | None) -> None:
    if path is not None and not path.endswith(".svg"):
        raise InputError(f"--plot {path}: expected FILE.svg")


def check_files(args: argparse.Namespace) -> None:
    """Refuse files that could not be written, before the long work starts."""
    check_plot(args.plot)
    for path in _files(args):
        check_writable(path)


def publish(
    args: argparse.Namespace, console: Console, found: Mapping[str, Any], text: str, svg: Callable[[], str]
) -> None:
    """Write and print a report. found: the report as JSON. svg: function that draws it."""
    if args.json not in (None, STDOUT):
        write_json(args.json, found)
    if args.plot is not None:
        write_text(args.plot, svg())
    console.text(text)
    console.result(found)
    for path in _files(args):
        console.note(f"wrote {path}")


def _files(args: argparse.Namespace) -> list[str]:
    return [path for path in (args.json, args.plot) if path not in (None, STDOUT)]
