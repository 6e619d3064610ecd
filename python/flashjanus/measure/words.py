"""Words for times, and the commit of this code. Nothing here needs torch."""

from __future__ import annotations

import subprocess
from pathlib import Path


def seconds(value: float) -> str:
    """A time with three digits and a unit."""
    unit, size = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if value >= pair[1]), ("us", 1e-6))
    return f"{f'{value / size:#.3g}'.rstrip('.') if value / size < 999.5 else f'{value / size:.0f}'} {unit}"


def short(value: float) -> str:
    """A round time, such as 5 ms."""
    unit, size = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if value >= pair[1] * (1 - 1e-9)), ("us", 1e-6))
    return f"{value / size:.3g} {unit}"


def commit() -> str | None:
    """The commit of this code, with "+ changes" if files differ from it; None outside its repository."""

    def git(*arguments: str) -> str | None:
        try:
            ran = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:  # no git
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    here = Path(__file__).resolve()
    if git("ls-files", "--error-unmatch", here.name) is None:  # installed in the folder of another repository
        return None
    found = git("rev-parse", "HEAD")
    return f"{found} + changes" if found and git("status", "--porcelain", "--untracked-files=no") else found
