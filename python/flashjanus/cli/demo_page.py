"""The page of the demo: one HTML file that loads nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashjanus.measure.evaluation.statistics import Interval, Share

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0; } h2 { margin: 2.5rem 0 .75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .75rem; overflow: hidden; }
figure img { display: block; width: 100%; image-rendering: pixelated; }
figcaption { padding: .75rem 1rem; } figcaption p { margin: .4rem 0 0; }
.sheet { overflow-x: auto; } .sheet img { width: 100%; min-width: 36rem; height: auto; border-radius: .75rem; }
.time { opacity: .7; font-size: .85em; white-space: nowrap; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; vertical-align: top; }
th { font-weight: 600; }
.scores { display: flex; flex-wrap: wrap; gap: 1rem 4rem; }
pre { background: var(--soft); padding: .75rem 1rem; border-radius: .5rem; overflow-x: auto; }
"""
NEXT = """flashjanus generate "two blue circles" --out pictures
flashjanus ask picture.png "How many circles are there?"
flashjanus serve --ui
flashjanus doctor"""


@dataclass(frozen=True)
class Shown:
    """A picture, its prompt and seed, an answer about it, and the seconds for drawing and answering."""

    path: Path
    prompt: str
    seed: int
    drawing: float
    question: str
    answer: str
    answering: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Scores:
    """The share of the test set that is right, by category or topic."""

    title: str
    groups: Mapping[str, Share]
    overall: Interval | Share


@dataclass(frozen=True)
class Facts:
    """Facts about the run: the machine, threads, versions, seconds, and `why`, the reasons for device and dtype."""

    machine: Mapping[str, Any]
    threads: int
    why: str
    versions: Mapping[str, str]
    loaded: float
    total: float


def page(shown: Sequence[Shown], sheet: Path, scores: Sequence[Scores], facts: Facts) -> str:
    """The HTML of the whole page. sheet: the file that shows the pictures of the test set."""
    body = [
        "<h1>FlashJanus demo</h1>",
        f"<p>One model of 9 million parameters drew these pictures and answered the questions, in "
        f"{facts.total:.0f} s, of which loading took {facts.loaded:.1f} s.</p>",
        "<h2>Drawn and asked</h2>",
        f'<div class="cards">{"".join(map(_card, shown))}</div>',
        "<h2>From the test set</h2>",
        "<p>Combinations that the model has not seen in training. The pixels are the judge.</p>",
        f'<div class="sheet"><img src="{_data(sheet)}" alt="pictures of the test set with prompts and verdicts"></div>',
        f'<div class="scores">{"".join(map(_score, scores))}</div>',
        "<p>Each share comes with its 95 % limits, which are wide for so few samples. "
        "<code>flashjanus eval shapes</code> takes all of them.</p>",
        "<h2>This machine</h2>",
        _table(_machine(facts)),
        "<h2>Next</h2>",
        f"<pre>{escape(NEXT)}</pre>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>FlashJanus demo</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _card(one: Shown) -> str:
    return (
        f'<figure><img src="{_data(one.path)}" alt="{escape(one.prompt)}"><figcaption><b>{escape(one.prompt)}</b> '
        f'<span class="time">seed {one.seed}, {one.drawing:.2f} s</span>'
        f"<p>{escape(one.question)}<br><b>{escape(one.answer)}</b> "
        f'<span class="time">{one.answering:.2f} s</span></p></figcaption></figure>\n'
    )


def _score(one: Scores) -> str:
    rows = [*((name, str(share)) for name, share in one.groups.items()), ("overall", str(one.overall))]
    return f"<div><h3>{escape(one.title.capitalize())}</h3>{_table(rows)}</div>"


def _machine(facts: Facts) -> Iterable[tuple[str, str]]:
    machine = facts.machine
    yield "CPU", f"{machine['cpu'] or 'unknown'}, {machine['architecture']}"
    yield "Cores", f"{machine['cores']}, of which {facts.threads} threads were used"
    yield "Instruction sets", " ".join(machine["instruction_sets"]) or "unknown"
    if machine["memory_bytes"] is not None:
        yield "Memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"
    yield "Runs on", facts.why
    yield "Versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{lines}</table>"


def _data(picture: Path) -> str:
    """A data URL with the contents of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
