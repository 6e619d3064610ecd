"""Puts pictures on one page with their prompts and verdicts, small ones enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 192
_MARGIN, _GAP, _LINE, _TITLE, _LINES = 16, 12, 15, 24, 6
_INK, _PAPER, _FRAME, _RIGHT, _WRONG = "#202020", "#ffffff", "#b0b0b0", "#0a7a2a", "#b01818"


@dataclass(frozen=True)
class Picture:
    """A picture, its prompt, and the verdict in words."""

    image: Image.Image
    prompt: str
    correct: bool
    verdict: str


def draw_sheet(title: str, sections: Sequence[tuple[str, Sequence[Picture]]]) -> Image.Image:
    """One row of pictures under each section's heading. Small pictures are enlarged to about SIDE pixels by whole
    factors without smoothing; large ones are scaled down to SIDE pixels."""
    columns = max((len(pictures) for _, pictures in sections), default=1)
    row = _TITLE + SIDE + _LINES * _LINE + _GAP
    width = 2 * _MARGIN + max(1, columns) * (SIDE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _TITLE + _GAP + len(sections) * row), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(12), ImageFont.load_default(17)
    canvas.text((_MARGIN, _MARGIN), title, _INK, large)
    top = _MARGIN + _TITLE + _GAP
    for heading, pictures in sections:
        canvas.text((_MARGIN, top), heading, _INK, large)
        for i, picture in enumerate(pictures):
            left, y = _MARGIN + i * (SIDE + _GAP), top + _TITLE
            image = _fitted(picture.image)
            sheet.paste(image, (left, y))
            canvas.rectangle((left - 1, y - 1, left + image.width, y + image.height), outline=_FRAME)
            mark, color = ("right", _RIGHT) if picture.correct else (picture.verdict, _WRONG)
            lines = [(line, _INK) for line in _wrapped(picture.prompt, small)[: _LINES - 2]]
            lines += [(line, color) for line in _wrapped(mark, small)]
            for n, (line, ink) in enumerate(lines[:_LINES]):
                canvas.text((left, y + SIDE + 4 + n * _LINE), line, ink, small)
        top += row
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest <= SIDE:
        factor = SIDE // longest
        return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scaled = image.convert("RGB")
    scaled.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return scaled


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than SIDE; a single word that is wider is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= SIDE:
            lines[-1] = longer
            continue
        while font.getlength(word) > SIDE:
            word = word[: len(word) * 9 // 10]
        lines.append(word)
    return lines
