"""docs/serving.md: its samples run against a server, its commands are understood, its tables are complete."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flashjanus.cli.app import build_parser
from flashjanus.serving.http.fields import Only
from flashjanus.serving.http.responses import ResponseBody
from flashjanus.serving.http.responses.bodies import ImageTool
from flashjanus.serving.http.schemas import IMAGE_EXTRAS, TEXT_EXTRAS, ChatBody, ImageBody
from serving_app import SECONDS, Served, image_of, served

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
HERE = "http://127.0.0.1:8000"
SAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def commands(program: str) -> list[list[str]]:
    return [words for line in LINES if (words := shlex.split(line, comments=True)) and words[0] == program]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


def test_the_samples_run_one_after_another(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(SAMPLES) == 6
    for sample in SAMPLES:
        names: dict[str, object] = {"__name__": "sample"}
        exec(compile(sample.replace(HERE, server.url), "serving.md", "exec"), names)
    assert {file.name for file in tmp_path.iterdir()} == {"drawn.png", "preview-0.png", "preview-1.png"}


def test_curl(server: Served) -> None:
    [words] = commands("curl")
    ran = subprocess.run([word.replace(HERE, server.url) for word in words], capture_output=True, timeout=SECONDS)
    assert ran.returncode == 0
    assert image_of(json.loads(ran.stdout)["data"][0]["b64_json"]).size == (256, 256)


def test_the_commands_are_understood() -> None:
    [gpustack] = re.findall(r"^    (flashjanus serve .*)$", PAGE, re.MULTILINE)
    filled = re.sub(r"\{\{port\}\}", "8000", gpustack)
    for words in [*commands("flashjanus"), shlex.split(filled)]:
        assert build_parser().parse_args(words[1:]).command == "serve"
    for line in re.findall(r"^    (flashjanus bench .*)$", PAGE, re.MULTILINE):
        assert build_parser().parse_args(shlex.split(line)[1:]).suite == "serve"
    for words in commands("docker"):
        if words[1] == "run":
            image = next(n for n, word in enumerate(words) if word.startswith("flashjanus"))
            build_parser().parse_args(["serve", *words[image + 1 :]])
    [install] = commands("pip")
    extras = re.findall(r"\[(.*)\]", install[-1])
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8") for extra in extras)
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert option in build_parser()._subparsers._group_actions[0].choices["serve"].format_help()  # type: ignore


def cells(row: str) -> list[list[str]]:
    """The names in each cell of a row of a table."""
    [found] = [line for line in PAGE.splitlines() if line.startswith(f"| {row} ")]
    return [re.findall(r"`(\w+)`", cell) for cell in found.split("|")[2:-1]]


@pytest.mark.parametrize(
    ("row", "model", "extras", "plain"),
    [
        ("`/v1/images/generations`", ImageBody, IMAGE_EXTRAS, ()),
        ("`/v1/chat/completions`", ChatBody, TEXT_EXTRAS, ()),
        ("`/v1/responses`", ResponseBody, TEXT_EXTRAS, ("text", "reasoning")),
        ("its tool `image_generation`", ImageTool, IMAGE_EXTRAS, ()),
    ],
)
def test_the_table_of_fields(row: str, model: Any, extras: tuple[str, ...], plain: tuple[str, ...]) -> None:
    honored, accepted, only = cells(row)
    fields = model.model_fields
    bound = {name for name, field in fields.items() if any(isinstance(one, Only) for one in field.metadata)}
    said = {name for name, field in fields.items() if re.match("accepted|as user", field.description or "")}
    assert set(only) == bound | {*plain}
    assert set(accepted) == said
    assert set(honored) == set(fields) - bound - said - {*extras, *plain}


def test_the_table_of_options() -> None:
    assert cells("images, and the tool") == [[*IMAGE_EXTRAS]]
    assert cells("answers") == [[*TEXT_EXTRAS]]


def test_the_table_of_figures(server: Served) -> None:
    told = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text
    names = {name for name in re.findall(r"^# HELP (\w+)", told, re.MULTILINE) if not name.endswith("_created")}
    assert set(re.findall(r"`(flashjanus_\w+)`", PAGE)) == names
