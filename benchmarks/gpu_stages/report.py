"""The results as a page: goals beside what was reached, the model's stages, every kernel, tests, and what was left out.

A figure that was not measured is shown as the reason why, never as a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Found = dict[str, Any]
GOALS = (
    # what is measured, the goal on an H200, its floor there
    ("one image, 30 steps with guidance", "150 ms", "115 ms"),
    ("16 images", "7.2 images/s", ""),
    ("decode of one row, a token", "0.98 ms", "0.70 ms"),
    ("attention, 2 x 16 heads x 576 queries x 640 keys", "12 us", ""),
    ("depthwise + norm", "6 us", ""),
    ("VAE decode", "4 ms", ""),
    ("SigLIP, one image", "1 ms", ""),
    ("flow step of one image beside the official eager code", "5 x", ""),
    ("decode of one row beside the official eager code", "20 x", ""),
)
NOT_MEASURED = "not measured"


def markdown(data: Found) -> str:
    """All of it; `brief` is without the kernels, of which there are hundreds."""
    every = kernels(data["stages"])
    return brief(data) + (f"\n{every}\n" if every else "")


def brief(data: Found) -> str:
    stages = data["stages"]
    parts = [heading(data), goals(stages), model(stages), official(stages), tests(stages)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(data: Found) -> str:
    machine = data["stages"].get("machine", {})
    packages = ", ".join(f"{name} {v}" for name, v in machine.get("packages", {}).items() if v)
    top = machine.get("ceilings") or {}
    lines = [
        f"# {machine.get('gpu', 'GPU unknown')}, {data['date']}",
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
    return said + [f"a process of it ended early, {text.splitlines()[-1][:200]}" for text in stage.get("ended", ())]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def why_not(row: Found | None) -> str:
    if row is None:
        return NOT_MEASURED
    return next((f"{key}: {row[key]}" for key in ("failed", "untimed", "refused", "skipped") if key in row), "")[:120]


def seconds(row: Found | None, key: str = "time") -> float | None:
    return row[key]["median_s"] if row is not None and key in row else None


def goals(stages: Found) -> str:
    found = reached(stages)
    rows = [(what, goal, floor, found[what]) for what, goal, floor in GOALS]
    note = "An image is its latents, without the VAE; decoding draws from the distribution, it is not greedy."
    return f"## Goals, set for an H200\n\n{note}\n\n" + table(("what", "goal", "floor", "reached"), rows)


def reached(stages: Found) -> dict[str, str]:
    rows = stages.get("model", {}).get("rows", {})

    def stage(name: str, unit: str) -> str:
        scale = {"ms": 1e3, "us": 1e6}[unit]
        took = seconds(rows.get(name))
        return f"{took * scale:.3g} {unit}" if took is not None else why_not(rows.get(name))

    found = {
        "one image, 30 steps with guidance": stage("image 1 graphs", "ms"),
        "decode of one row, a token": stage("decode 1 graphs", "ms"),
        "VAE decode": stage("VAE 1 graphs", "ms"),
        "SigLIP, one image": stage("SigLIP 1 graphs", "ms"),
    }
    many = rows.get("image 16 graphs")
    found["16 images"] = f"{many['images_per_s']:.2f} images/s" if many and "time" in many else why_not(many)
    for what, op in ((GOALS[3][0], "attention"), (GOALS[4][0], "depthwise_norm")):
        # by what the plan chose, in the flow step of one image; an op's widest form
        forms = [
            row
            for row in stages.get("kernels", {}).get("rows", {}).values()
            if row["op"] == op and row["chosen"] and row["program"].startswith("flow_step [R=1,")
        ]
        widest = max(forms, key=lambda row: row["bytes"], default=None)
        took = seconds(widest)
        label = "" if widest is None else f" ({widest['implementation']})"
        found[what] = f"{took * 1e6:.3g} us{label}" if took is not None else why_not(widest) + label
    for what, name, theirs in (
        ("flow step of one image beside the official eager code", "flow step 1 graphs", "step"),
        ("decode of one row beside the official eager code", "decode 1 graphs", "decode_token"),
    ):
        other = peer(stages, theirs, 1, "eager")
        own = seconds(rows.get(name))
        found[what] = f"{other / own:.1f} x" if other is not None and own else NOT_MEASURED
    return found


def peer(stages: Found, what: str, rows: int, mode: str) -> float | None:
    """Median seconds of the official code's stage: step, encode, prefill_620 or decode_token."""
    run = "step" if what == "step" else "understand"
    row = stages.get("official", {}).get("rows", {}).get(f"{run} {rows} {mode}", {})
    return row[what]["median_s"] if what in row else None


def model(stages: Found) -> str:
    rows = stages.get("model", {}).get("rows", {})
    if not rows:
        return ""
    lines = []
    names = dict.fromkeys((row["stage"], row["rows"]) for row in rows.values())
    for name, count in names:
        graphs, eager = (rows.get(f"{name} {count} {mode}") for mode in ("graphs", "eager"))
        cells = [milliseconds(row) for row in (graphs, eager)]
        own, other = seconds(graphs), seconds(eager)
        make, peak = (graphs or {}).get("make_s"), (graphs or {}).get("peak_bytes")
        lines.append(
            (
                name,
                str(count),
                *cells,
                f"{other / own:.2f}" if own and other else "",
                f"{make:.2f}" if make is not None else "",
                f"{peak / 2**30:.1f}" if peak else "",
            )
        )
    note = (
        "Medians with the least and most behind, ms. Steps, prefill, VAE and SigLIP by CUDA events; image (prompts, "
        "all steps, latents read) and answer (a token of every row, read by the host, the prefill spread over them) by "
        "the clock. make: plan, memory and capture before a first run."
    )
    header = ("stage", "rows", "graphs, ms", "eager, ms", "eager / graphs", "make, s", "peak, GiB")
    return "\n\n".join(["## The model", note, table(header, lines)])


def milliseconds(row: Found | None) -> str:
    took = seconds(row)
    if row is None or took is None:
        return why_not(row)
    return f"{took * 1e3:.3f} ({row['time']['min_s'] * 1e3:.3f} to {row['time']['max_s'] * 1e3:.3f})"


def official(stages: Found) -> str:
    stage = stages.get("official", {})
    if "rows" not in stage:
        return ""
    own = stages.get("model", {}).get("rows", {})
    ours = {"step": "flow step", "encode": "SigLIP", "prefill_620": "prefill", "decode_token": "decode"}
    lines = []
    for name, row in stage["rows"].items():
        timed = [what for what in ours if what in row and isinstance(row[what], dict)]
        for what in timed:
            _, rows, mode = name.split()
            took, theirs = seconds(own.get(f"{ours[what]} {rows} graphs")), row[what]["median_s"]
            ratio = f"{theirs / took:.2f}" if took else NOT_MEASURED
            lines.append((ours[what], rows, mode, f"{theirs * 1e3:.3f}", ratio))
        if not timed:
            lines.append((name, "", "", why_not(row), ""))
    header = ("stage", "rows", "official", "its time, ms", "times ours with graphs")
    return "## The official code on the same machine\n\n" + table(header, lines)


def tests(stages: Found) -> str:
    found, checks = stages.get("tests", {}), stages.get("sanitizer", {})
    lines = []
    if "passed" in found:
        lines.append(f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped.")
        lines += [f"- `{it['test']}`: {it['says'].splitlines()[0] if it['says'] else ''}" for it in found["failures"]]
    for tool in ("memcheck", "racecheck"):
        if tool in checks:
            it = checks[tool]
            state = "no errors" if it["ok"] else f"NOT clean: {it['errors']} errors, exit code {it['exit_code']}"
            lines.append(f"compute-sanitizer {tool}: {state}, {it['passed']} tests under it.")
    return "\n\n".join(["## Tests", *lines]) if lines else ""


def kernels(stages: Found) -> str:
    stage = stages.get("kernels", {})
    rows = stage.get("rows", {})
    if not rows:
        return ""
    lines = []
    for row in rows.values():
        if "refused" in row:
            continue
        measured = [why_not(row), "", "", ""]
        if "time" in row:
            share = max(row["share"].values())
            marks = "" if row["captured"] else " (launches included)"
            micro = f"{row['time']['median_s'] * 1e6:.2f}{marks}"
            measured = [micro, f"{row['gbps']:.0f}", f"{row['tflops']:.1f}", f"{share:.0%}"]
        name = f"**{row['implementation']}**" if row["chosen"] else row["implementation"]
        lines.append((row["op"], name, row["program"], row["sizes"], *measured, error(row)))
    header = ("op", "by", "first met in", "sizes", "us", "GB/s", "TFLOP/s", "of the ceiling", "from torch's")
    note = (
        "Bold: what the plan chooses. Share: the larger of those of the two ceilings. Activations come from the L2, as "
        "behind the kernel that wrote them; weights, keys and values from memory."
    )
    return "\n\n".join(["## Kernels", note, table(header, lines), "\n".join(sums(stage))])


def error(row: Found) -> str:
    return f"{row['difference']:.1g}" if "difference" in row else ""


def sums(stage: Found) -> Iterator[str]:
    """Of each program, its nodes' times together: what a step would take if they ran without a gap."""
    for program, forms in stage.get("programs", {}).items():
        known = [(seconds(stage["rows"].get(name)), count) for name, count in forms]
        total = sum(took * count for took, count in known if took is not None)
        missing = sum(count for took, count in known if took is None)
        without = f", without {missing} nodes that were not timed" if missing else ""
        yield f"- {program}: nodes sum to {total * 1e3:.3f} ms{without}"
