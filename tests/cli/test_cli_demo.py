"""The demo: pictures, answers and scores as they come, and a page that holds all of it."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from flashjanus.cli import demo
from PIL import Image


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SAMPLES", 1)
    monkeypatch.setattr(demo, "QUESTIONS", 1)


def test_everything_is_told_and_on_the_page(cli, tmp_path: Path) -> None:
    result = cli("demo", "--out", tmp_path / "demo")
    assert result.code == 0
    path = Path(result.out.splitlines()[-1])
    assert path == tmp_path / "demo/index.html"
    page = unescape(path.read_text(encoding="utf-8"))
    pictures = [file for file in path.parent.glob("*.png") if file.name != "sheet.png"]
    assert len(pictures) == len(demo.ASKED)
    for prompt, question in demo.ASKED:
        assert prompt in page
        assert question in page
        assert question in result.out
    assert [f"<b>{answer}</b>" in page for answer in ("circle", "three", "yellow")] == [True] * 3
    for picture in pictures:
        assert str(picture) in result.out
        with Image.open(picture) as image:
            assert image.size == (64 * demo.ENLARGE, 64 * demo.ENLARGE)
            assert image.text["prompt"] in dict(demo.ASKED)
    assert page.count('src="data:image/png;base64,') == len(pictures) + 1, "and the sheet"
    for words in ("This machine", "CPU", "torch", "Pictures right", "Answers right"):
        assert words in page
    assert not re.findall(r"https?:|<script|<link|@import", page), "asks for nothing from elsewhere"
    assert {file.name for file in path.parent.iterdir()} == {path.name, "sheet.png", *(file.name for file in pictures)}


def test_a_folder_that_cannot_be_written_is_said_at_once(cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("demo", "--out", tmp_path / "file/demo")
    assert result.code == 2
    assert "Loading" not in result.out
