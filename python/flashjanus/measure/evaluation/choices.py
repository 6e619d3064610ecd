"""Multiple-choice questions about pictures, in the formats of MMBench and SEED-Bench."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError
from flashjanus.inputs.images import load_image
from flashjanus.measure.evaluation.answers import ask, at_once
from flashjanus.measure.evaluation.drawing import Progress, silent
from flashjanus.measure.evaluation.records import Record, as_record, read_document
from flashjanus.measure.evaluation.statistics import Share, shares_by_name

LETTERS = "ABCDEFGH"
INSTRUCTION = "Answer with the option's letter from the given choices directly."
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_SHORTEST_BASE64 = 128  # characters; a shorter text is a file's name that does not exist
# A lone letter such as "B", "(B)", "B.", "B) the cat", or one after "answer is"/"answer:"; not an article ("A cat").
_LETTER = re.compile(r"\(?([A-Ha-h])(?:[.:)]|$)|\(?([A-H])\)(?=\W|$)")
_STATED = re.compile(r"\b(?i:answer|option|choice)(?: is|:)? *(?:\(([A-Ha-h])\)|([B-H]\b|A\b(?!\s+\w)))")


@dataclass(frozen=True)
class Choice:
    """A question (including its hint) with lettered options. picture: its file or bytes; where: place in the source."""

    question: str
    options: Mapping[str, str]
    answer: str
    category: str
    picture: Path | bytes | None
    where: str

    @property
    def prompt(self) -> str:
        """The question, one line per option, and the instruction how to answer."""
        lines = [f"{letter}. {text}" for letter, text in self.options.items()]
        return "\n".join([self.question, *lines, INSTRUCTION])

    def image(self) -> Image.Image | None:
        """The picture, if there is one. Raises InputError naming item and key."""
        try:
            return None if self.picture is None else load_image(self.picture)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class ChoicesReport:
    """Accuracy by category; overall pools all questions. unread: replies without a letter, counted as wrong."""

    categories: Mapping[str, Share]
    unread: int
    skipped: int

    @property
    def overall(self) -> Share:
        return Share.pooled(self.categories.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            "categories": {name: share.to_json() for name, share in self.categories.items()},
            "unread_replies": self.unread,
            "skipped_videos": self.skipped,
        }


def read_choices(path: Path, folder: Path | None = None) -> tuple[list[Choice], int]:
    """The questions of a JSON file, and how many were skipped because they are about videos.

    The file is a list of objects, or SEED-Bench's {"questions": [...], "question_type": {name: id}}. Each has
    "question", options "A", "B", ... or "choice_a", ..., the letter "answer", and may have "hint", a picture in "image"
    ("img", "data_id"; a file in `folder`, by default the JSON file's own, or base64) and "category" (or
    "question_type_id"). Raises InputError naming item and key.
    """
    document = read_document(path)
    names: dict[Any, str] = {}
    if isinstance(document, dict) and "questions" in document:
        types = document.get("question_type")
        if isinstance(types, dict):
            names = {number: name for name, number in types.items() if isinstance(number, int)}
        document = document["questions"]
    if not isinstance(document, list) or not document:
        raise InputError(f"{path}: expected a list of questions, or an object with one under 'questions'")
    records = [as_record(item, f"{path}: item {n}") for n, item in enumerate(document)]
    pictured = [record for record in records if record.data.get("data_type") != "video"]
    if not pictured:
        raise InputError(f"{path}: expected questions about pictures, got {len(records)} about videos only")
    return [_choice(record, folder or path.parent, names) for record in pictured], len(records) - len(pictured)


def _choice(record: Record, folder: Path, names: Mapping[Any, str]) -> Choice:
    keys = [f"choice_{letter.lower()}" if record.has("choice_a") else letter for letter in LETTERS]
    options: dict[str, str] = {}
    for letter, key in zip(LETTERS, keys, strict=True):
        if _is_empty(record, key):
            break
        value = record.data[key]
        options[letter] = str(value) if type(value) in (int, float) else record.text(key)
    if len(options) < 2:
        raise record.error(keys[len(options)], "an option (a text or a number); at least two of them")
    answer = record.text("answer").strip().upper()
    if answer not in options:
        raise record.error("answer", f"one of the letters {', '.join(options)}")
    hint = "" if _is_empty(record, "hint") else f"{record.text('hint')}\n"
    image_key = next((key for key in ("image", "img", "data_id") if not _is_empty(record, key)), None)
    picture = None if image_key is None else _picture(record, image_key, folder)
    where = f"{record.where}: '{image_key}'"
    return Choice(hint + record.text("question"), options, answer, _category(record, names), picture, where)


def _is_empty(record: Record, key: str) -> bool:
    """Whether the value is absent or empty, in any of the ways in which exported tables express that."""
    return record.data.get(key) in (None, "", "nan")


def _picture(record: Record, key: str, folder: Path) -> Path | bytes:
    """The file in `folder` that the record names, or the bytes if the record itself holds them in base64."""
    text = record.text(key)
    head, comma, data = text.partition(";base64,")
    if head.startswith("data:") and comma:
        text = data
    elif len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return record.path(key, folder)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise record.error(key, f"base64 of a picture ({error})") from error


def _category(record: Record, names: Mapping[Any, str]) -> str:
    if record.has("category"):
        return record.text("category")
    number = record.data.get("question_type_id")
    if type(number) is int:
        return names.get(number, f"type {number}")
    return "all"


def letter_of(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a reply gives, by letter or by the option's full text; None if neither."""
    text = reply.strip()
    found = _LETTER.match(text) or _STATED.search(text)
    letter = (found.group(1) or found.group(2)).upper() if found else None
    if letter in options:
        return letter
    plain = text.rstrip(".").casefold()
    return next((name for name, option in options.items() if option.strip().rstrip(".").casefold() == plain), None)


def evaluate_choices(
    model: JanusFlow, choices: Sequence[Choice], *, skipped: int = 0, progress: Progress = silent
) -> ChoicesReport:
    """Ask all questions, decode greedily, and judge the answers by their letter."""
    outcomes: list[tuple[str, bool]] = []
    unread = 0
    with progress(len(choices), "asking") as show:
        for start in range(0, len(choices), at_once(model)):
            batch = choices[start : start + at_once(model)]
            replies = ask(model, [(choice.image(), choice.prompt) for choice in batch])
            for choice, reply in zip(batch, replies, strict=True):
                letter = letter_of(reply, choice.options)
                unread += letter is None
                outcomes.append((choice.category, letter == choice.answer))
            show(start + len(batch))
    return ChoicesReport(shares_by_name(outcomes), unread, skipped)
