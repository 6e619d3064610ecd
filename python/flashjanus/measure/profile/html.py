"""Writes a profile as one self-contained HTML file with SVG pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from flashjanus.engine.plan import Plan

from .measure import Profile
from .memory import peak
from .rows import Row, bucket, programs, rows
from .table import HEAD, cells, facts

WIDTH = 900
BAR = 20
"""Pixels from one bar to the next."""
LABEL = 300
ARENA_HEIGHT = 240
COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#bab0ac")
STYLE = """
body { font: 14px system-ui, sans-serif; max-width: 940px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-size: 12px; } td, th { padding: 1px 8px; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr.program { font-weight: bold; background: #eee; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; }
"""


def page(profile: Profile, title: str) -> str:
    """The whole report; `title` names the request and the model."""
    wall, parts = profile.median.wall, rows(profile)
    totals = programs(parts)
    plans = {bucket(run.plan): run.plan for run in profile.median.runs}
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in facts(profile)),
        "<h2>Time by program</h2>",
        _bars([(row.name, row) for row in totals], wall),
        "<h2>Time by op</h2><p>The dark part is what the roofline asks for.</p>",
        _bars(_by_op(parts), wall),
        "<h2>Programs and their ops</h2>",
        _table(totals, parts, wall),
        "<h2>Memory</h2><p>Each program's arena: a tensor covers its bytes, upwards, from the node that writes it to "
        "the last that reads it, rightwards. Point at one for its name.</p>",
        *(_arena(plan) for plan in plans.values()),
    ]
    if profile.kernels:
        found = "".join(
            f"<tr><td>{escape(k.name)}</td><td>{k.calls}</td><td>{k.seconds * 1e3:.3f}</td></tr>"
            for k in profile.kernels
        )
        body.append(f"<h2>GPU kernels</h2><table><tr><th>kernel</th><th>calls</th><th>ms</th></tr>{found}</table>")
    body += ["<h2>Nodes</h2>", "<details><summary>every node</summary>"]
    nodes = rows(profile, by_node=True)
    body += [_table(programs(nodes), nodes, wall), "</details>"]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _by_op(parts: Iterable[Row]) -> list[tuple[str, Row]]:
    """Rows of the same op and implementation in all programs merged into one, sorted by time."""
    sums: dict[str, Row] = {}
    for row in parts:
        name = f"{row.name} {row.implementation}".strip()
        so_far = sums.get(name, Row("", name, "", 0, 0.0))
        seconds, floor = so_far.seconds + row.seconds, so_far.floor + row.floor
        sums[name] = Row("", name, "", so_far.calls + row.calls, seconds, floor=floor)
    return sorted(sums.items(), key=lambda item: -item[1].seconds)


def _bars(bars: Sequence[tuple[str, Row]], wall: float) -> str:
    longest = max(row.seconds for _, row in bars) or 1.0
    room = WIDTH - LABEL - 170
    drawn = []
    for i, (name, row) in enumerate(bars):
        y, length = i * BAR, room * row.seconds / longest
        color = COLORS[0] if row.floor else COLORS[-1]
        said = f"{row.seconds * 1e3:.3f} ms, {row.seconds / wall:.1%}"
        said += f", roofline {row.floor / row.seconds:.0%}" if row.floor and row.seconds else ""
        drawn.append(
            f'<text x="{LABEL - 6}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="14" fill="{color}"/>'
            f'<rect x="{LABEL}" y="{y + 3}" width="{min(length, room * row.floor / longest):.1f}" height="14" '
            f'fill="#1f3a5f"/><text x="{LABEL + length + 6:.1f}" y="{y + 14}">{said}</text>'
        )
    return _svg(len(bars) * BAR + 4, drawn)


def _table(totals: Iterable[Row], parts: Sequence[Row], wall: float) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    lines = [f"<tr>{head}</tr>"]
    for total in totals:
        own = [row for row in parts if row.program == total.program]
        for row, kind in [(total, ' class="program"'), *((row, "") for row in own)]:
            lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(c)}</td>" for c in cells(row, wall)) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _arena(plan: Plan) -> str:
    most, node = peak(plan)
    said = f"{bucket(plan)}: {plan.arena_bytes / 1e6:.3f} MB, in use at most {most / 1e6:.3f} MB (at {node})"
    across, up = WIDTH / max(1, len(plan.nodes)), ARENA_HEIGHT / max(1, plan.arena_bytes)
    drawn = []
    for i, life in enumerate(plan.lifetimes):
        last = min(life.last, len(plan.nodes) - 1)
        top = ARENA_HEIGHT - (plan.offsets[life.name] + life.nbytes) * up
        until = "end" if life.last == len(plan.nodes) else plan.nodes[last].label
        drawn.append(
            f'<rect x="{life.first * across:.2f}" y="{top:.2f}" width="{(last - life.first + 1) * across:.2f}" '
            f'height="{life.nbytes * up:.2f}" fill="{COLORS[i % len(COLORS)]}"><title>{escape(life.name)}: '
            f"{life.nbytes:,} bytes at {plan.offsets[life.name]:,}, until {escape(until)}</title></rect>"
        )
    frame = f'<rect width="{WIDTH}" height="{ARENA_HEIGHT}" fill="#f4f4f4"/>'
    return f"<p>{escape(said)}</p>" + _svg(ARENA_HEIGHT, [frame, *drawn])


def _svg(height: int, parts: Iterable[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>'
