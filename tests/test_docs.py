"""What the documents show runs: every Python example, and every command that needs nothing but this checkout.

```python blocks are run one by one, and so are the lines that a ```diff block adds; ```bash blocks command by command,
each in a folder of its own that holds the files of `FILES`. Commands in ```sh blocks and in indented lines need
weights, a network, minutes or other programs: those of `flashjanus` have to be understood, and so do the command's
options wherever a sentence names them.
The examples of docs/serving.md need a server: serving/test_serving_page.py.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from flashjanus.cli import main
from flashjanus.cli.app import build_parser
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = ("benchmarks/results/README.md", "examples/**/*.md", "python/**/*.md", ".github/**/*.md")
ALL = [*DOCUMENTS, *sorted(path for pattern in OTHERS for path in ROOT.glob(pattern))]
SERVED = ROOT / "docs/serving.md"
SLOW = tuple(f"flashjanus {command}" for command in ("bench latency", "eval", "profile", "quality", "schedule"))
"""Of these, a block takes more than some seconds."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def named(language: str) -> list[object]:
    """Every block of a language, by its page and number."""
    found = []
    for page in DOCUMENTS:
        for number, block in enumerate([] if page == SERVED else blocks(page, language)):
            slow = [pytest.mark.long] if any(command in block for command in SLOW) else []
            found.append(pytest.param(page, block, id=f"{page.stem}-{number}", marks=slow))
    return found


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What examples take to be there."""
    monkeypatch.chdir(tmp_path)
    [rows] = blocks(ROOT / "docs/cluster.md", "json")
    (tmp_path / "prompts.jsonl").write_text(rows)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos/1.png")
    return tmp_path


@pytest.mark.parametrize(("page", "example"), named("python"))
def test_an_example_runs(page: Path, example: str, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, page.name, "exec"), names)
    if page.stem == "embedding":
        assert (folder / "circle.png").stat().st_size > 0


@pytest.mark.parametrize(("page", "change"), named("diff"))
def test_a_change_runs(page: Path, change: str) -> None:
    """The lines that it adds."""
    added = [line[1:] for line in change.splitlines() if line.startswith("+")]
    assert added
    exec(compile("\n".join(added), page.name, "exec"), {})


@pytest.mark.parametrize(("page", "block"), named("bash"))
def test_commands_run(page: Path, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = commands(block)
    assert ran
    for words in ran:
        assert words[0] == "flashjanus", f"{page.name}: what is not a command of flashjanus belongs into an ```sh block"
        code = main(words[1:])
        said = capsys.readouterr()
        assert code == 0, f"{page.name}: {shlex.join(words)}\n{said.out}{said.err}"


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command, by its words, those that have commands of their own included."""
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found |= parsers(one)
    return found


COMMANDS = parsers(build_parser())


def shown(page: Path) -> Iterator[str]:
    """Commands in ```sh blocks and in indented lines."""
    text = page.read_text(encoding="utf-8")
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    for words in commands("\n".join(blocks(page, "sh"))):
        yield shlex.join(words)
    yield from re.findall(r"^ {4}(\S.*)$", outside, re.MULTILINE)


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page: Path) -> None:
    for line in shown(page):
        if line.startswith("flashjanus ") and "{{" not in line:
            build_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_sentences_name_is_there(page: Path) -> None:
    """Commands with their options, targets of make, and extras of pip."""
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"`(flashjanus [a-z][^`]*)`", text):
        words = span.split()
        name = next(" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in COMMANDS)
        assert name != "flashjanus", f"{page.name}: `{span}`: there is no such command"
        under = [parser.format_help() for command, parser in COMMANDS.items() if f"{command} ".startswith(f"{name} ")]
        for option in (word for word in words if word.startswith("--")):
            assert any(f"{option} " in text.replace("]", " ").replace("\n", " ") for text in under), (
                f"{page.name}: `{span}`"
            )
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^| {4})make ([a-z][a-z-]*)(?=[ `\n])", text, re.MULTILINE)) <= targets
    for extras in re.findall(r"flashjanus\[([\w,-]+)\]", text):
        assert all(
            f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8") for extra in extras.split(",")
        )


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_data_can_be_read(page: Path) -> None:
    """JSON as a whole, or row by row, and YAML."""
    for block in blocks(page, "json"):
        assert all(json.loads(row) for row in ([block] if block.startswith("{\n") else block.splitlines()))
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)
