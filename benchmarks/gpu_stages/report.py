"""The results as a page: goals beside what was reached, then each stage's table, and what was left out.

Instead of a figure that was not measured, the page shows why it was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Found = dict[str, Any]
GOALS = (
    # what is measured, its row; on an H200 expected before a first run, the goal, the floor
    ("flow step, 1 image with guidance", "flow step 1 graphs", "5.7 to 6.2 ms", "4.4 ms", "3.82 ms"),
    ("image, 30 steps", "image 1 graphs", "171 to 186 ms", "135 ms", "115 ms"),
    ("16 images", "image 16 graphs", "6.6 images/s", "7.4 images/s", "8.7 images/s"),
    ("decode of one row, sampled", "decode, sampled 1 graphs", "1.1 ms", "0.83 ms", "0.70 ms"),
    ("decode of one row, greedy", "decode, greedy 1 graphs", "", "", "0.70 ms"),
    ("VAE decode", "VAE 1 graphs", "4.3 to 4.8 ms", "4 ms", ""),
    ("SigLIP, one image", "SigLIP 1 graphs", "1.45 ms", "1 ms", ""),
    ("prefill of 620 tokens", "prefill 1 graphs", "", "", "2.0 ms"),
    ("fp8: image, 30 steps", "image 1 fp8 graphs", "126 to 140 ms", "95 ms", "61 ms"),
    ("fp8: flow step", "flow step 1 fp8 graphs", "4.2 to 4.7 ms", "3.2 ms", "2.0 ms"),
    ("fp8: decode of one row", "decode, sampled 1 fp8 graphs", "", "0.6 ms", ""),
    ("int8: decode of one row", "decode, sampled 1 int8 graphs", "", "0.6 ms", ""),
)
BESIDE_OFFICIAL = (
    ("flow step beside the official eager code", "flow step 1 graphs", "step", "5 x"),
    ("decode of one row beside the official eager code", "decode, sampled 1 graphs", "decode_token", "20 x"),
)
NOT_MEASURED = "not measured"
OURS = {"step": "flow step", "encode": "SigLIP", "prefill_620": "prefill", "decode_token": "decode, sampled"}
"""Our stage for each thing that the official code's program times."""
NODES_SHOWN = 40


def markdown(data: Found) -> str:
    """The whole page; `brief` leaves out the long tables."""
    stages = data["stages"]
    parts = [brief(data).rstrip(), profile(stages), alternatives(stages), chosen(stages, every=True)]
    return "\n\n".join(part for part in parts if part) + "\n"


def brief(data: Found) -> str:
    stages = data["stages"]
    parts = [heading(data), goals(stages), chosen(stages), learned(data), headline(stages), official(stages)]
    return "\n\n".join(part for part in [*parts, tests(stages)] if part) + "\n"


def heading(data: Found) -> str:
    machine = data["stages"].get("machine", {})
    packages = ", ".join(f"{name} {v}" for name, v in machine.get("packages", {}).items() if v)
    top = machine.get("ceilings") or {}
    lines = [
        f"# {data['gpu']}, call {data['call']}, {data['date']}",
        f"Commit {data['commit']}; `{data['command']}`; {packages}; CUDA {machine.get('cuda')}.",
    ]
    if top:
        gemm, copy = top["flops"] / 1e12, top["bytes"] / 1e9
        lines.append(f"Ceilings measured: {gemm:.0f} TFLOP/s (bf16 GEMM), {copy:.0f} GB/s (copy, read and written).")
    if data.get("dry_run"):
        lines.append("**A dry run of a small model on a CPU: the figures mean nothing.**")
    for name, stage in data["stages"].items():
        lines += [f"**{name}: {why}**" for why in reasons(stage)]
    return "\n\n".join(lines)


def reasons(stage: Found) -> list[str]:
    """Why a stage is missing or incomplete."""
    said = [
        " ".join(stage[key].split())[-300:]
        for key in ("absent", "not_run", "failed_to_run", "unusable")
        if stage.get(key)
    ]
    if "trying" in stage:
        said.append(f"the call ended during {stage['trying']['name']}")
    ended = (text.strip().splitlines()[-1][:200] for text in stage.get("ended", ()))
    return said + [f"a process of it ended early, {last}" for last in ended]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def why_not(row: Found | None) -> str:
    if row is None:
        return NOT_MEASURED
    return next((f"{key}: {row[key]}" for key in ("failed", "skipped") if key in row), "")[:120]


def seconds(row: Found | None) -> float | None:
    return row["time"]["median_s"] if row is not None and "time" in row else None


def goals(stages: Found) -> str:
    rows = stages.get("headline", {}).get("rows", {})
    lines = []
    for what, name, expected, goal, floor in GOALS:
        row = rows.get(name)
        took = seconds(row)
        reached = why_not(row)
        if row is not None and took is not None:
            reached = f"{row['images_per_s']:.2f} images/s" if name == "image 16 graphs" else f"{took * 1e3:.3f} ms"
            reached += " (without what was wrong)" if row.get("without") else ""
        lines.append((what, expected, goal, floor, reached))
    for what, name, theirs, goal in BESIDE_OFFICIAL:
        other, own = peer(stages, theirs, 1, "eager"), seconds(rows.get(name))
        lines.append((what, "", goal, "", f"{other / own:.1f} x" if other is not None and own else NOT_MEASURED))
    note = "An image is its latents, without the VAE. All are captured graphs."
    return f"## Goals, set for an H200\n\n{note}\n\n" + table(("what", "expected", "goal", "floor", "reached"), lines)


def peer(stages: Found, what: str, rows: int, mode: str) -> float | None:
    """Median seconds of the official code's stage: step, encode, prefill_620 or decode_token."""
    run = "step" if what == "step" else "understand"
    row = stages.get("official", {}).get("rows", {}).get(f"{run} {rows} {mode}", {})
    return row[what]["median_s"] if what in row else None


def chosen(stages: Found, every: bool = False) -> str:
    """What was wrong, or with `every` everything that was checked."""
    found = stages.get("chosen", {})
    rows = found.get("rows", {}).values()
    if not rows:
        return ""
    wrong = [row for row in rows if "failed" in row]
    left = [row for row in rows if "skipped" in row]
    head = f"## {'All choices' if every else 'Choices'} against float32"
    said = [
        f"{len(rows) - len(wrong) - len(left)} choices of the plans are right at their shapes, {len(wrong)} are wrong"
        f"{f', {len(left)} were not looked at: out of time' if left else ''}."
    ]
    said += [f"**{why}**" for why in found.get("unfinished", ())]
    lines = [
        (row["op"], row["implementation"], row["program"], row["node"], row["sizes"], verdict(row))
        for row in (rows if every else wrong)
    ]
    shown = [table(("op", "by", "program", "node", "sizes", "error over allowed"), lines)] if lines else []
    return "\n\n".join([head, *said, *shown])


def verdict(row: Found) -> str:
    """About a choice: its error, or what is wrong and what serves instead."""
    if "failed" not in row:
        return why_not(row) or share(row)
    successor = row.get("successor")
    instead = f"; {successor} serves instead" if successor else "; **nothing right is left: it serves all the same**"
    return why_not(row) + ("" if row["failed"].startswith("the process ended") else instead)


def share(row: Found) -> str:
    return f"{row['error']:.2f}" if "error" in row else ""


def learned(data: Found) -> str:
    taught = data.get("learned")
    if taught is None:
        return ""
    lines = [f"- `{name}` = {it['value']}: {it['why']}" for name, it in taught.get("tuned", {}).items()]
    lines += [f"- {op} not by {name}: {why}" for op, name, why in taught.get("slower", ())]
    lines += [f"- {op} by {name} was wrong: looked at again" for op, name in taught.get("suspects", ())]
    return f"## Learned\n\nFrom {taught['from']}:\n\n" + ("\n".join(lines) or "- nothing to change")


def headline(stages: Found) -> str:
    rows = stages.get("headline", {}).get("rows", {})
    if not rows:
        return ""
    lines, without = [], {}
    names = dict.fromkeys((row["stage"], row["rows"], row["quantization"]) for row in rows.values())
    for name, count, of in names:
        key = " ".join(filter(None, (name, str(count), of)))
        graphs, eager = (rows.get(f"{key} {mode}") for mode in ("graphs", "eager"))
        own, other = seconds(graphs), seconds(eager)
        make, peak = (graphs or {}).get("make_s"), (graphs or {}).get("bytes", (graphs or {}).get("peak_bytes"))
        marks = "".join(mark(why, without) for why in (graphs or {}).get("without", ()))
        lines.append(
            (
                name + marks,
                str(count),
                of or "",
                *(milliseconds(row) for row in (graphs, eager)),
                f"{other / own:.2f}" if own and other else "",
                f"{make:.2f}" if make is not None else "",
                f"{peak / 2**30:.1f}" if peak else "",
            )
        )
    note = (
        "Medians with the least and most after them, ms. Steps, tokens, prefill, VAE and SigLIP by CUDA events; image "
        "(prompts, all steps, latents read), answer (a token of every row, read by the host, the prefill spread over "
        "them) and warm-up by the clock. make: plan, memory and capture before a first run. GiB: the most in use so "
        "far; of warm-up what it takes."
    )
    header = ("stage", "rows", "in", "graphs, ms", "eager, ms", "eager / graphs", "make, s", "GiB")
    left_out = [f"{number} Measured without {why}." for why, number in without.items()]
    return "\n\n".join(["## Headline", note, table(header, lines), *left_out])


def mark(why: str, known: dict[str, str]) -> str:
    return f" {known.setdefault(why, f'[{len(known) + 1}]')}"


def milliseconds(row: Found | None) -> str:
    took = seconds(row)
    if row is None or took is None:
        return why_not(row)
    return f"{took * 1e3:.3f} ({row['time']['min_s'] * 1e3:.3f} to {row['time']['max_s'] * 1e3:.3f})"


def official(stages: Found) -> str:
    stage = stages.get("official", {})
    if "rows" not in stage:
        return ""
    own = stages.get("headline", {}).get("rows", {})
    lines = []
    for name, row in stage["rows"].items():
        timed = [what for what in OURS if what in row and isinstance(row[what], dict)]
        for what in timed:
            _, rows, mode = name.split()
            took, theirs = seconds(own.get(f"{OURS[what]} {rows} graphs")), row[what]["median_s"]
            ratio = f"{theirs / took:.2f}" if took else NOT_MEASURED
            lines.append((OURS[what], rows, mode, f"{theirs * 1e3:.3f}", ratio))
        if not timed:
            lines.append((name, "", "", why_not(row), ""))
    header = ("stage", "rows", "official", "its time, ms", "times ours with graphs")
    return "## The official code on the same machine\n\n" + table(header, lines)


def tests(stages: Found) -> str:
    checks = stages.get("sanitizer", {})
    lines = []
    for name, file in stages.get("tests", {}).get("files", {}).items():
        if "passed" not in file:
            lines.append(f"{name}: {file['skipped_file']}.")
            continue
        lines.append(f"{name}: {file['passed']} passed, {file['failed']} failed, {file['skipped']} skipped.")
        lines += [f"**{name}: {why}**" for why in reasons(file)]
        lines += [f"- `{it['test']}`: {last_line(it['says'])}" for it in file["failures"]]
    for tool in ("memcheck", "racecheck"):
        if tool in checks:
            it = checks[tool]
            state = "no errors" if it["ok"] else f"NOT clean: {it['errors']} errors, exit code {it['exit_code']}"
            lines.append(f"compute-sanitizer {tool}: {state}, {it['passed']} tests under it.")
    return "\n\n".join(["## Tests", *lines]) if lines else ""


def last_line(says: str) -> str:
    errors = [line[1:].strip() for line in says.splitlines() if line.startswith("E")]
    return (errors or says.splitlines() or [""])[0][:300]


def profile(stages: Found) -> str:
    parts = []
    for name, row in stages.get("profile", {}).get("rows", {}).items():
        if "trace" in row:
            continue
        if not row.get("kernels"):
            parts.append(f"### {name}\n\n{why_not(row) or 'no kernels: no GPU'}")
            continue
        idle = row["span_us"] - row["busy_us"]
        head = (
            f"{row['kernels']} kernels, {row['busy_us']:.0f} us in them, {row['span_us']:.0f} us from first to last "
            f"({idle:+.0f} us between them), {'captured' if row['captured'] else 'launched one by one'}; "
            f"{row['named']:.0%} have their node."
        )
        lines = [
            (it["node"], it["kernel"], str(it["calls"]), f"{it['us']:.1f}", f"{it['us'] / it['calls']:.2f}",
             f"{it['gap']:.1f}")
            for it in row["table"][:NODES_SHOWN]
        ]  # fmt: skip
        header = ("node (op by implementation)", "kernel", "calls", "us", "us each", "gaps, us")
        parts.append(f"### {name}\n\n{head}\n\n{table(header, lines)}")
    return "\n\n".join(["## Kernels by node", *parts]) if parts else ""


def alternatives(stages: Found) -> str:
    rows = stages.get("alternatives", {}).get("rows", {})
    if not rows:
        return ""
    lines = [line for row in rows.values() for line in side_by_side(row)]
    note = (
        "Bold: what is in force. Share: of the nearer of the two ceilings. Activations come from the L2, as after the "
        "kernel that wrote them; weights, keys and values from memory."
    )
    header = ("what", "sizes", "calls", "choice", "us", "TFLOP/s", "GB/s", "share", "error over allowed")
    return "\n\n".join(["## Alternatives side by side", note, table(header, lines)])


def side_by_side(row: Found) -> Iterator[Sequence[str]]:
    what = row.get("stage") or f"{row['op']}, {row['program']}"
    if "choices" not in row:
        yield (what, row.get("sizes", ""), "", "", why_not(row), "", "", "", "")
        return
    for name, it in row["choices"].items():
        shown = f"**{name}**" if name == row.get("implementation") else name
        took = seconds(it)
        cells = [why_not(it), "", "", ""]
        if took is not None:
            cells = [f"{took * 1e6:.2f}" + ("" if it.get("captured", True) else " (launches included)"), "", "", ""]
            if "share" in it:
                cells[1:] = [f"{it['tflops']:.1f}", f"{it['gbps']:.0f}", f"{it['share']:.0%}"]
        yield (what, row.get("sizes", ""), str(row.get("calls", "")), shown, *cells, share(it))
