"""The `flashjanus` command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of one command line (default: this process's own): see `flashjanus.cli.app.run`."""
    try:
        from flashjanus.cli.app import run
    except KeyboardInterrupt:  # so early that there is nothing to say
        return 130
    return run(argv)


__all__ = ["main"]
