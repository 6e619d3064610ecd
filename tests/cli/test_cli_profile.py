"""`flashjanus profile` on the built-in model with random weights: rows that add up, and every form of the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime.profile import Recorder, recording
from flashjanus.measure import ceilings
from flashjanus.measure.profile.measure import GAPS, Profile, Timeline, measure
from flashjanus.measure.profile.memory import arena, peak
from flashjanus.measure.profile.rows import OUTSIDE, programs, rows
from flashjanus.measure.profile.trace import trace
from PIL import Image

STEPS = 2


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (50, 30), (255, 0, 0)).save(path)
    return path


def profile_of(model: JanusFlow, repeats: int = 1) -> Profile:
    return measure(model, lambda: model.generate_image("a red circle", num_inference_steps=STEPS, seed=0), repeats)


@pytest.mark.parametrize("kind", ["generate", "chat"])
@pytest.mark.parametrize("nodes", [False, True])
def test_rows_add_up_to_the_wall_time(cli, untrained_folder: Path, image: Path, kind: str, nodes: bool) -> None:
    asked = (
        ["a red circle", "--steps", STEPS] if kind == "generate" else ["what?", "--image", image, "--max-new-tokens", 4]
    )
    options = ["--model", untrained_folder, "--dtype", "float32", "--repeats", 2, "--json"]
    result = cli("profile", kind, *asked, *options, *(["--nodes"] if nodes else []))
    assert (result.code, result.err) == (0, "")
    found = result.json
    table, wall = found["nodes" if nodes else "ops"], found["wall_seconds"]
    # far within 3 %: nothing is lost, nothing counts twice
    assert sum(row["seconds"] for row in table) == pytest.approx(wall, rel=1e-6)
    assert sum(row["seconds"] for row in found["programs"]) == pytest.approx(wall, rel=1e-6)
    assert sum(row["share"] for row in table) == pytest.approx(1, rel=1e-6)
    assert all(row["seconds"] >= 0 for row in table)
    assert wall in found["walls"]
    assert (len(found["walls"]), len(found["walls_without_profiler"])) == (2, 2)
    ran = {row["program"].partition(" ")[0]: row["calls"] for row in found["programs"]}
    expected = (
        {"flow_prepare": 1, "flow_step": STEPS, "decode_latents": 1}
        if kind == "generate"
        else {"encode_images": 1, "prefill": 1, "decode_step": 3}
    )
    assert {name: ran[name] for name in expected} == expected
    gaps = {row["name"] for row in table if row["program"] == OUTSIDE}
    assert gaps <= set(GAPS.values()), "time outside of programs without a name of its own"


def test_work_and_rates_are_those_of_the_plans(untrained: JanusFlow) -> None:
    profile = profile_of(untrained)
    plans = [run.plan for run in profile.median.runs]
    parts = rows(profile)
    assert sum(row.flops for row in parts) == sum(plan.flops for plan in plans)
    assert sum(row.nbytes for row in parts) == sum(plan.nbytes for plan in plans)
    assert sum(row.floor for row in parts) == pytest.approx(
        sum(profile.floor(plan, n.flops, n.nbytes) for plan in plans for n in plan.nodes)
    )
    linear = next(row for row in parts if row.name == "linear" and row.program.startswith("flow_step"))
    seen = linear.to_json(profile.median.wall)
    assert seen["flops_per_second"] == linear.flops / linear.seconds
    assert seen["roofline"] == linear.floor / linear.seconds
    bound = max(linear.flops / profile.ceilings.rates[torch.float32], linear.nbytes / profile.ceilings.bandwidth)
    assert linear.floor >= bound * (1 - 1e-9)


def test_programs_and_ops_come_by_time_with_what_is_outside_last(untrained: JanusFlow) -> None:
    parts = rows(profile_of(untrained))
    totals = programs(parts)
    assert totals[-1].program == OUTSIDE
    inside = [total.seconds for total in totals[:-1]]
    assert inside == sorted(inside, reverse=True)
    for total in totals:
        own = [row.seconds for row in parts if row.program == total.program]
        assert own == sorted(own, reverse=True)
        assert total.seconds == pytest.approx(sum(own))


def test_the_request_shown_is_the_median(untrained: JanusFlow) -> None:
    done: list[int] = []
    request = lambda: untrained.generate_image("a red circle", num_inference_steps=1, seed=0)  # noqa: E731
    profile = measure(untrained, request, 3, done=done.append)
    assert profile.median.wall == sorted(profile.walls)[1]
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_a_profile_does_not_change_the_pictures(untrained: JanusFlow) -> None:
    def drawn() -> bytes:
        out = untrained.generate_image("a red circle", num_inference_steps=STEPS, seed=3)
        return bytes(out.images[0].tobytes())

    before = drawn()
    with recording(Recorder()) as recorder:
        during = drawn()
    assert during == before
    assert recorder.runs


def test_gaps_of_an_unknown_order_are_named_by_their_neighbors(untrained: JanusFlow) -> None:
    runs = profile_of(untrained).median.runs
    backwards = list(reversed(runs))
    names = [gap.name for gap in Timeline(0.0, 1.0, backwards).gaps]
    assert names[0] == "between begin and decode_latents"
    assert len(names) == len(runs) + 1


def test_the_trace_tiles_the_request(untrained: JanusFlow) -> None:
    profile = profile_of(untrained)
    found = json.loads(json.dumps(trace(profile)))["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in found if e["ph"] == "M"}
    events = [e for e in found if e["ph"] == "X"]
    assert {e["tid"] for e in events} == set(tracks)
    assert next(iter(tracks.values())) == OUTSIDE
    runs = {run.plan.name for run in profile.median.runs}
    whole = [e for e in events if tracks[e["tid"]] == OUTSIDE or e["name"] in runs]
    assert sum(e["dur"] for e in whole) == pytest.approx(profile.median.wall * 1e6, rel=0.001)
    nodes = [e for e in events if "op" in e["args"]]
    assert len(nodes) == sum(len(run.plan.nodes) for run in profile.median.runs)
    assert {"op", "implementation", "flops", "bytes"} <= nodes[0]["args"].keys()
    for event in nodes:  # within a run on the same track
        end = event["ts"] + event["dur"]
        within = [e for e in whole if e["tid"] == event["tid"] and e["ts"] <= event["ts"] + 0.01]
        assert any(end <= e["ts"] + e["dur"] + 0.01 for e in within)


def test_steps_without_branches_are_a_program_of_their_own(cli, untrained_folder: Path) -> None:
    options = ["--model", untrained_folder, "--dtype", "float32", "--repeats", 1, "--json"]
    found = cli("profile", "generate", "a red circle", "--steps", 4, "--uncond-every", 3, *options).json
    ran = {row["program"].partition(" ")[0]: row["calls"] for row in found["programs"]}
    assert (ran["flow_step"], ran["flow_step_conditional"]) == (2, 2)
    assert found["uncond_every"] == 3


def test_gaps_between_all_forms_of_a_step_have_names(cli, untrained_folder: Path) -> None:
    options = ["--model", untrained_folder, "--dtype", "float32", "--repeats", 1, "--json"]
    options += ["--step-cache", "0,0.25,0.75", "--guidance-interval", 0, 0.5]
    found = cli("profile", "generate", "a red circle", "--steps", 8, *options).json
    ran = {row["program"].partition(" ")[0] for row in found["programs"]}
    forms = {"storing", "storing_conditional", "recalling", "recalling_conditional"}
    assert {f"flow_step_{form}" for form in forms} <= ran
    assert {row["name"] for row in found["ops"] if row["program"] == OUTSIDE} <= set(GAPS.values())


@pytest.mark.parametrize("program", ["encode_images", "prefill", "decode_step", "flow_prepare", "flow_step"])
def test_the_arena_timeline_is_the_planner_s(untrained: JanusFlow, program: str) -> None:
    plan = untrained.plan(program)
    lives = plan.lifetimes
    assert {life.name for life in lives} == set(plan.offsets)
    assert max(plan.offsets[life.name] + life.nbytes for life in lives) <= plan.arena_bytes
    for i, a in enumerate(lives):
        for b in lives[:i]:
            apart = a.last < b.first or b.last < a.first
            start, other = plan.offsets[a.name], plan.offsets[b.name]
            assert apart or start + a.nbytes <= other or other + b.nbytes <= start, (a, b)
    most, node = peak(plan)
    at = [n.label for n in plan.nodes].index(node)
    assert 0 < most == sum(life.nbytes for life in lives if life.first <= at <= life.last) <= plan.arena_bytes
    assert arena(plan)["peak_node"] == node


class Page(HTMLParser):
    """Tags balanced, and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        lengths = [float(str(v)) for name, v in attrs if name in ("width", "height")]
        assert all(length >= 0 for length in lengths), attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_reports_in_files(cli, untrained_folder: Path, tmp_path: Path) -> None:
    page, events = tmp_path / "profile.html", tmp_path / "trace.json"
    asked = ["<b>a red circle</b>", "--steps", STEPS, "--model", untrained_folder, "--repeats", 1]
    result = cli("profile", "generate", *asked, "--html", page, "--trace", events)
    assert (result.code, result.err) == (0, "")
    assert re.search(r"\n  linear +\w+ +\d+ +\d+\.\d{3} +\d+\.\d%", result.out)
    assert re.search(r"\nsum of the rows +\d+\.\d{3} +(9[7-9]|10[0-3])\.\d%", result.out)
    assert "Python between nodes" in result.out
    text = page.read_text()
    parser = Page()
    parser.feed(text)
    assert (parser.open, parser.fetched) == ([], [])
    assert parser.count["svg"] == 5, "programs, ops, and three arenas"
    assert "script" not in parser.count
    assert "b" not in parser.count, "the prompt is escaped"
    assert "&lt;b&gt;a red circle" in text
    assert json.loads(events.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--repeats", "0"], "InputError", "--repeats must be 1 to 1000, got 0"),
        (["--html", "/nowhere/at/all.html"], "OutputError", "an existing folder"),
        (["--trace", "."], "OutputError", "cannot write '.'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    cli, model, options: list[str], error: str, words: str
) -> None:
    result = cli("profile", "generate", "a red circle", *options, "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == error
    assert words in result.json["error"]["message"]
    assert model.calls == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_nvtx_needs_a_gpu(cli, model) -> None:
    result = cli("profile", "chat", "what?", "--nvtx")
    assert result.code == 2
    assert "--nvtx: expected a GPU" in result.err
    assert model.calls == []


def test_a_question_is_needed(cli, model) -> None:
    assert "QUESTION must not be empty" in cli("profile", "chat", " ").err
    assert "generate|chat" in cli("profile").err
