"""The `flashjanus` command. Nothing here imports torch before a command needs it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit code; see `flashjanus.cli.app.run`."""
    try:
        from flashjanus.cli.app import run
    except KeyboardInterrupt:  # nothing has been done yet, so there is nothing to report
        return 130
    return run(argv)


__all__ = ["main"]
