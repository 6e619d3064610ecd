"""American spelling, and "after" where one thing comes after another: words that are not to come back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_ALONE = (
    "benchmarks/results/",  # as they were recorded
    "tests/golden/",
    "tests/test_words.py",
    "python/flashjanus/measure/evaluation/language.py",  # the built-in model was trained on these words
    "python/flashjanus/builtin/shapes/tokenizer.json",
)
STEMS = "quanti|normali|initiali|optimi|recogni|seriali|summari|tokeni|organi|minimi|maximi|capitali|generali|prioriti"
RETIRED = re.compile(
    rf"(?:{STEMS})s(?:e|es|ed|er|ers|ing|ation|ations)\b"
    r"|colour|neighbour|behaviour|favour|honour|\bcentre|grey\b|afterwards|\bfulfil\b"
    # what is behind something is hidden by it, or was left there
    r"|\bbehind\b(?! (?:OpenAI's|a proxy|an asyncio|checks))(?<!left behind)(?<!leaves behind)",
    re.IGNORECASE,
)


def retired(text: str) -> list[str]:
    """Every retired word, by line."""
    return [
        f"line {number}: {found[0]}"
        for number, line in enumerate(text.split("\n"), 1)
        for found in RETIRED.finditer(line)
    ]


def test_retired_words_do_not_come_back() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a repository, which alone knows what files are its own")
    names = [name for name in listed.stdout.split("\0") if name and not name.startswith(LEFT_ALONE)]
    assert len(names) > 400
    found = []
    for name in names:
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data:
            found += [f"{name}: {fault}" for fault in retired(data.decode("utf-8", "replace"))]
    assert found == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Quantised weights\nand a colour, normalising", 3),
        ("the norm behind it", 1),
        ("a server behind a proxy, what a call leaves behind", 0),
        ("quantized, color, precise, promise, centered, raised, exercise", 0),
    ],
)
def test_what_is_retired(text: str, count: int) -> None:
    assert len(retired(text)) == count
