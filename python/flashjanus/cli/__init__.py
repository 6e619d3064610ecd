"""The `flashjanus` command. Nothing here imports torch before a command needs it."""

from flashjanus.cli.main import main

__all__ = ["main"]
