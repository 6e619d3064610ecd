"""GenEval's prompt files and its rules: which detections make a picture right.

Source: Ghosh, Hajishirzi, Schmidt, "GenEval: An object-focused framework for evaluating text-to-image alignment",
2023, and the README and settings of github.com/djghosh13/geneval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.measure.evaluation.detectors import Detection
from flashjanus.measure.evaluation.records import Record, read_records
from flashjanus.measure.evaluation.statistics import MEAN_INTERVAL, Interval, Share, mean_of, shares_by_name

MIN_SCORE = 0.3
"""Detections must have a higher score than this; for a counting prompt, higher than MIN_COUNTING_SCORE."""
MIN_COUNTING_SCORE = 0.9
MAX_PER_CLASS = 16
TOLERANCE = 0.1
"""On each axis, an offset counts only by as much as it exceeds this share of the sum of both objects' sizes."""
MIN_DIRECTION = 0.5
"""An offset points to a side if its remainder there exceeds this share of its full length (60 degrees)."""
RELATIONS = ("left of", "right of", "above", "below")
MAX_COUNT = 1000


@dataclass(frozen=True)
class Clause:
    """Objects that must appear in a picture (`include`), or whose number must stay below `count` (`exclude`).

    position: (relation, index of the include clause that it is relative to).
    """

    label: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class GenevalPrompt:
    """One line of an evaluation_metadata.jsonl. record: the line itself, which may name its picture."""

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    record: Record


def read_prompts(path: Path) -> list[GenevalPrompt]:
    """The prompts of a JSON-lines file. Raises InputError naming line and key."""
    return [_prompt(record) for record in read_records(path)]


def _prompt(record: Record) -> GenevalPrompt:
    include = [_clause(one, index) for index, one in enumerate(record.records("include"))]
    exclude = [_clause(one, None) for one in record.records("exclude")]
    if not include and not exclude:
        raise record.error("include", "a list of at least one object {'class', 'count'}")
    tag = record.text("tag") if record.has("tag") else "all"
    return GenevalPrompt(tag, record.text("prompt"), tuple(include), tuple(exclude), record)


def _clause(record: Record, index: int | None) -> Clause:
    color = record.text("color") if record.has("color") else None
    position = None
    if record.has("position"):
        value = record.data["position"]
        pair = isinstance(value, list) and len(value) == 2
        if not pair or value[0] not in RELATIONS or type(value[1]) is not int or not 0 <= value[1] < (index or 0):
            expected = f"[{' | '.join(map(repr, RELATIONS))}, index of an earlier object of 'include']"
            raise record.error("position", expected)
        position = (value[0], value[1])
    return Clause(record.text("class"), record.integer("count", 1, MAX_COUNT), color, position)


def faults(prompt: GenevalPrompt, detections: Sequence[Detection]) -> list[str]:
    """What is wrong in a picture with these detections (sorted by confidence), in words; empty if it is right.

    For every `include` clause, at least `count` objects of the class must be there (`exclude` makes the number exact).
    Colors and positions are checked on the `count` most confident ones. A clause whose target is not met is not met.
    """
    threshold = MIN_COUNTING_SCORE if prompt.tag == "counting" else MIN_SCORE
    found: dict[str, list[Detection]] = {}
    for detection in detections:
        if detection.score > threshold and len(found.get(detection.label, ())) < MAX_PER_CLASS:
            found.setdefault(detection.label, []).append(detection)
    wrong: list[str] = []
    met: list[list[Detection]] = []
    for clause in prompt.include:
        chosen = found.get(clause.label, [])[: clause.count]
        fault = _fault(clause, chosen, met)
        met.append([] if fault else chosen)
        wrong += [fault] if fault else []
    for clause in prompt.exclude:
        count = len(found.get(clause.label, []))
        if count >= clause.count:
            wrong.append(f"{count} {clause.label}, expected fewer than {clause.count}")
    return wrong


def _fault(clause: Clause, chosen: Sequence[Detection], met: Sequence[Sequence[Detection]]) -> str | None:
    if len(chosen) < clause.count:
        return f"{len(chosen) or 'no'} {clause.label} instead of {clause.count}"
    if clause.color is not None:
        others = sorted({one.color or "of no known color" for one in chosen if one.color != clause.color})
        if others:
            return f"the {clause.label} is {' and '.join(others)}, not {clause.color}"
    if clause.position is not None:
        wanted, index = clause.position
        if not met[index]:
            return f"nothing for the {clause.label} to be {wanted}"
        for one in chosen:
            for target in met[index]:
                sides = relations(one.box, target.box)
                if wanted not in sides:
                    seen = " and ".join(sorted(sides)) or "at the place of"
                    return f"the {clause.label} is {seen} the {target.label}, not {wanted} it"
    return None


Box = tuple[float, float, float, float]


def relations(a: Box, b: Box) -> set[str]:
    """The sides of box `b` on which box `a` lies.

    The offset of the centers is shortened on each axis by TOLERANCE of the sum of both widths (heights). `a` lies on a
    side if the remainder on that axis exceeds MIN_DIRECTION of the full offset's length: diagonal offsets give two
    sides, small offsets none.
    """
    offsets = [(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2 for axis in (0, 1)]
    length = math.hypot(*offsets)
    sides = set()
    for axis, (low, high) in enumerate((("left of", "right of"), ("above", "below"))):
        slack = TOLERANCE * (a[axis + 2] - a[axis] + b[axis + 2] - b[axis])
        rest = max(0.0, abs(offsets[axis]) - slack)
        if length > 0 and rest > MIN_DIRECTION * length:
            sides.add(low if offsets[axis] < 0 else high)
    return sides


@dataclass(frozen=True)
class Judged:
    """A picture of prompt number `prompt`, and what is wrong with it."""

    prompt: int
    tag: str
    text: str
    name: str
    faults: tuple[str, ...]

    @property
    def correct(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class GenevalReport:
    """GenEval's score: the mean over tags of the share of right pictures. Tags are taken as independent."""

    judged: Sequence[Judged]

    @property
    def tags(self) -> Mapping[str, Share]:
        return shares_by_name((one.tag, one.correct) for one in self.judged)

    @property
    def overall(self) -> Interval:
        return mean_of(list(self.tags.values()))

    @property
    def any_correct(self) -> Share:
        """The share of prompts with at least one right picture."""
        best: dict[int, bool] = {}
        for one in self.judged:
            best[one.prompt] = best.get(one.prompt, False) or one.correct
        return Share.of(best.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": {**self.overall.to_json(), "interval": MEAN_INTERVAL},
            "tags": {tag: share.to_json() for tag, share in self.tags.items()},
            "images": Share.of(one.correct for one in self.judged).to_json(),
            "prompts_with_a_right_image": self.any_correct.to_json(),
            "wrong": [
                {"prompt": one.text, "image": one.name, "faults": list(one.faults)}
                for one in self.judged
                if not one.correct
            ],
        }
