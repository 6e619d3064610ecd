"""Prints the table of implementations in Markdown: python -m flashjanus.engine.ops."""

from __future__ import annotations

from . import all_ops


def table() -> str:
    """One line per op that has an implementation besides torch's, listing all of them, the preferred one first."""
    lines = ["| op | implementations, the preferred first |", "| --- | --- |"]
    lines += [
        f"| `{op.name}` | {', '.join(op.implementations)} |" for op in all_ops().values() if len(op.implementations) > 1
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
