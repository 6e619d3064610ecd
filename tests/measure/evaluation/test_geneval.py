"""GenEval's prompt files, layout and rules, and detectors as plug-ins; the shapes judge takes the same path."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from flashjanus.errors import InputError, OutputError
from flashjanus.inputs.images import load_image
from flashjanus.measure.evaluation import Detection, world
from flashjanus.measure.evaluation.detectors import detect, load_detector, shapes_detector
from flashjanus.measure.evaluation.geneval import GenevalPrompt, GenevalReport, Judged, faults, read_prompts, relations
from flashjanus.measure.evaluation.pictures import (
    find_pictures,
    geneval_sheet,
    judge_pictures,
    load_pictures,
    write_picture,
)
from flashjanus.measure.evaluation.sets import prompt_set
from PIL import Image

CUP = {"class": "cup", "count": 1}
DOG = {"class": "dog", "count": 1}


def line(**fields: Any) -> dict[str, Any]:
    return {"tag": "any", "include": [CUP], "prompt": "a photo of a cup", **fields}


def written(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), "utf-8")
    return path


def parsed(tmp_path: Path, **fields: Any) -> GenevalPrompt:
    (prompt,) = read_prompts(written(tmp_path / "one.jsonl", line(**fields)))
    return prompt


def seen(label: str, x: float = 50, y: float = 50, color: str | None = None, score: float = 0.95) -> Detection:
    return Detection(label, (x - 10, y - 10, x + 10, y + 10), score, color)


def test_lines_of_the_published_file_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "evaluation_metadata.jsonl",
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], '
        '"exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}',
        "",
        '{"tag": "position", "include": [{"class": "skateboard", "count": 1}, '
        '{"class": "bird", "count": 1, "position": ["below", 0]}], "prompt": "a photo of a bird below a skateboard"}',
    )
    counting, position = read_prompts(path)
    assert (counting.tag, counting.text) == ("counting", "a photo of two clocks")
    assert [(clause.label, clause.count) for clause in counting.include + counting.exclude] == [
        ("clock", 2),
        ("clock", 3),
    ]
    assert position.include[1].position == ("below", 0)
    assert position.record.where.endswith("line 3")


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (line(prompt=""), "prompt"),
        (line(prompt=7), "prompt"),
        (line(include=[]), "include"),
        (line(include="cup"), "include"),
        (line(include=["cup"]), "include[0]"),
        (line(include=[{"class": "cup"}]), "count"),
        (line(include=[{"class": "cup", "count": 0}]), "count"),
        (line(include=[{"class": "cup", "count": True}]), "count"),
        (line(include=[{"count": 1}]), "class"),
        (line(include=[CUP, {**DOG, "color": 3}]), "color"),
        (line(include=[CUP, {**DOG, "position": ["beside", 0]}]), "position"),
        (line(include=[CUP, {**DOG, "position": ["above", 1]}]), "position"),
        (line(include=[{**DOG, "position": ["above", 0]}]), "position"),
        (line(include=[CUP, {**DOG, "position": "above"}]), "position"),
        (line(include=[CUP, {**DOG, "position": [["above"], 0]}]), "position"),
        (line(exclude=[{"class": "cup", "count": -1}]), "count"),
        (line(tag={}), "tag"),
        ("[1]", "a JSON object"),
        ("{", "JSON"),
        ('{"tag": 1e999}', "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_bad_line_is_refused_by_line_and_key(tmp_path: Path, bad: dict[str, Any] | str, key: str) -> None:
    path = written(tmp_path / "bad.jsonl", line(), bad)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert f"{path}: line 2" in str(caught.value)
    assert key in str(caught.value)
    assert len(str(caught.value)) < 500


def test_files_that_are_no_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "binary", written(tmp_path / "empty"), Path("a\0b")):
        with pytest.raises(InputError):
            read_prompts(path)


def test_counts(tmp_path: Path) -> None:
    exact = parsed(tmp_path, tag="counting", include=[{**CUP, "count": 2}], exclude=[{"class": "cup", "count": 3}])
    assert faults(exact, [seen("cup")] * 2) == []
    assert faults(exact, [seen("cup")]) == ["1 cup instead of 2"]
    assert faults(exact, [seen("cup")] * 3) == ["3 cup, expected fewer than 3"]
    assert faults(exact, [seen("dog")] * 2) == ["no cup instead of 2"]
    at_least = parsed(tmp_path)
    assert faults(at_least, [seen("cup")] * 3 + [seen("dog")]) == []


def test_unsure_detections_do_not_count_and_counting_takes_surer_ones(tmp_path: Path) -> None:
    plain, counting = parsed(tmp_path), parsed(tmp_path, tag="counting")
    assert faults(plain, [seen("cup", score=0.31)]) == []
    assert faults(plain, [seen("cup", score=0.3)]) != []
    assert faults(counting, [seen("cup", score=0.91)]) == []
    assert faults(counting, [seen("cup", score=0.9)]) != []


def test_colors_are_those_of_the_surest_objects(tmp_path: Path) -> None:
    prompt = parsed(tmp_path, include=[{**CUP, "color": "red"}])
    assert faults(prompt, [seen("cup", color="red"), seen("cup", color="blue", score=0.5)]) == []
    assert faults(prompt, [seen("cup", color="blue"), seen("cup", color="red", score=0.5)]) == [
        "the cup is blue, not red"
    ]
    assert faults(prompt, [seen("cup")]) == ["the cup is of no known color, not red"]


def test_positions_are_relative_to_a_target_that_is_met_itself(tmp_path: Path) -> None:
    prompt = parsed(tmp_path, include=[{**CUP, "color": "red"}, {**DOG, "position": ["left of", 0]}])
    cup = seen("cup", 100, color="red")
    assert faults(prompt, [cup, seen("dog", 20)]) == []
    assert faults(prompt, [cup, seen("dog", 180)]) == ["the dog is right of the cup, not left of it"]
    assert faults(prompt, [cup, seen("dog", 101)]) == ["the dog is at the place of the cup, not left of it"]
    assert faults(prompt, [seen("cup", 100, color="blue"), seen("dog", 20)]) == [
        "the cup is blue, not red",
        "nothing for the dog to be left of",
    ]


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (30, 30, {"right of", "below"}),
        (0, 0, set()),
        (3.9, 0, set()),  # tolerance: 0.1 * (20 + 20) = 4 pixels
        (7.9, 0, set()),  # (7.9 - 4) / 7.9 < 0.5
        (8.1, 0, {"right of"}),
        (30, 20, {"right of"}),  # 16 / 36.06 < 0.5
        (30, 24, {"right of", "below"}),  # 20 / 38.4 > 0.5
    ],
)
def test_relations_keep_the_tolerance(dx: float, dy: float, expected: set[str]) -> None:
    assert relations(seen("a", 100 + dx, 100 + dy).box, seen("b", 100, 100).box) == expected


def test_the_score_is_the_mean_of_tags() -> None:
    right, wrong = (), ("wrong",)
    judged = [Judged(0, "counting", "p", "a", right), Judged(0, "counting", "p", "b", wrong)]
    judged += [Judged(n, "colors", "q", "c", wrong) for n in (1, 2, 3)]
    report = GenevalReport(judged)
    assert report.overall.value == 0.25
    assert (report.any_correct.correct, report.any_correct.total) == (1, 4)
    value = json.loads(json.dumps(report.to_json()))
    assert value["tags"]["counting"]["score"] == 0.5
    assert value["images"]["total"] == 5
    assert [one["image"] for one in value["wrong"]] == ["b", "c", "c", "c"]


def shapes_file(folder: Path) -> Path:
    """Six prompts of the shapes world in GenEval's format, with ground truth in GenEval's layout beside them."""
    lines = []
    for number, prompt in enumerate(prompt_set(1)):
        counts = {want: prompt.wanted.count(want) for want in prompt.wanted}
        include = [
            {"class": want.shape, "count": count, **({"color": want.color} if want.color else {})}
            for want, count in counts.items()
        ]
        if prompt.relation is not None:
            include = [include[1], {**include[0], "position": [prompt.relation, 0]}]
        exclude = [{"class": clause["class"], "count": clause["count"] + 1} for clause in include]
        lines.append({"tag": prompt.category, "include": include, "exclude": exclude, "prompt": prompt.text})
        samples = folder / "images" / f"{number:05}" / "samples"
        samples.mkdir(parents=True)
        Image.fromarray(world.render(prompt.scene)).save(samples / "0000.png")
        written(samples.parent / "metadata.jsonl", lines[-1])
    return written(folder / "prompts.jsonl", *lines)


def unsure(image: Image.Image) -> list[Detection]:
    """The shapes' detector, sure enough for counting wherever it sees a shape."""
    return [Detection(one.label, one.box, 1.0, one.color) for one in shapes_detector(image)]


def test_ground_truth_of_the_shapes_world_is_right_by_genevals_rules(tmp_path: Path) -> None:
    prompts = read_prompts(shapes_file(tmp_path))
    found = find_pictures(prompts, tmp_path / "images")
    report, rows = judge_pictures(prompts, load_pictures(found), unsure, shown=2)
    assert report.overall.value == 1.0, report.to_json()["wrong"]
    assert [len(row) for row in rows.values()] == [1] * 6
    assert geneval_sheet(report, rows).width > 192
    Image.new("RGB", (64, 64), "white").save(tmp_path / "images" / "00003" / "samples" / "0001.png")
    report, _ = judge_pictures(prompts, load_pictures(find_pictures(prompts, tmp_path / "images")), unsure)
    assert report.tags["colors"].value == 0.5
    assert "no " in report.judged[4].faults[0]


def test_pictures_may_be_named_line_by_line(tmp_path: Path) -> None:
    for name in ("b", "a"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    prompts = read_prompts(written(tmp_path / "list.jsonl", line(image="b.png"), line(image="a.png")))
    assert [path.name for _, path in find_pictures(prompts, tmp_path)] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    "name", ["absent.png", "../secret.png", "/etc/hostname", "link.png", "a\0.png", ".", "x" * 5000]
)
def test_a_named_picture_lies_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    prompts = read_prompts(written(tmp_path / "list.jsonl", line(image=name)))
    with pytest.raises(InputError, match="line 1: 'image'"):
        find_pictures(prompts, folder)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    prompts = read_prompts(shapes_file(tmp_path))
    written(tmp_path / "images" / "00002" / "metadata.jsonl", line(prompt="another"))
    with pytest.raises(InputError, match=r"00002.*'prompt'.*line 3.*another"):
        find_pictures(prompts, tmp_path / "images")
    (tmp_path / "images" / "00001" / "samples" / "0000.png").unlink()
    with pytest.raises(InputError, match=r"00001.samples: expected pictures.*line 2"):
        find_pictures(prompts, tmp_path / "images")
    with pytest.raises(InputError, match="folder"):
        find_pictures(prompts, tmp_path / "none")
    mixed = read_prompts(written(tmp_path / "mixed.jsonl", line(image="prompts.jsonl"), line()))
    with pytest.raises(InputError, match="line 2: 'image'"):
        find_pictures(mixed, tmp_path)


def test_a_picture_of_another_run_is_left_alone(tmp_path: Path) -> None:
    prompt = parsed(tmp_path)
    write_picture(tmp_path / "out", prompt, "00000/samples/0000.png", Image.new("RGB", (4, 4), "red"))
    with pytest.raises(OutputError, match="File exists"):
        write_picture(tmp_path / "out", prompt, "00000/samples/0000.png", Image.new("RGB", (4, 4), "blue"))
    home = tmp_path / "out" / "00000"
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*")) == [
        "metadata.jsonl",
        "samples",
        "samples/0000.png",
    ]
    assert load_image(home / "samples" / "0000.png").getpixel((0, 0)) == (255, 0, 0)
    assert json.loads((home / "metadata.jsonl").read_text()) == prompt.record.data


def test_a_detector_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_detector.py").write_text(
        "from flashjanus.measure.evaluation import Detection\n"
        "def find(image):\n    return [Detection('dog', (0, 0, 1, 1), 0.4), Detection('cup', (0, 0, 1, 1), 0.9)]\n"
        "class Finder:\n    def __call__(self, image):\n        return 'nothing'\n"
        "number = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    image = Image.new("RGB", (4, 4))
    assert [one.label for one in detect(load_detector("own_detector:find"), image)] == ["cup", "dog"]
    with pytest.raises(InputError, match="list of Detection, got 'nothing'"):
        detect(load_detector("own_detector:Finder"), image)
    assert sys.path == before
    for name in (
        "own_detector",
        ":find",
        "own_detector:",
        "own_detector:absent",
        "own_detector:number",
        "no.such:find",
    ):
        with pytest.raises(InputError, match="detector"):
            load_detector(name)


@pytest.mark.parametrize(
    "bad",
    [
        {"box": (0, 0, 1)},
        {"box": (5, 0, 1, 1)},
        {"box": (0, 0, float("nan"), 1)},
        {"box": "abcd"},
        {"score": 1.5},
        {"score": "high"},
        {"label": 3},
        {"color": 3},
    ],
)
def test_a_bad_detection_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="detection"):
        Detection(**{"label": "cup", "box": (0, 0, 1, 1), "score": 0.5, "color": None, **bad})


def test_the_shapes_detector_wants_its_own_size() -> None:
    with pytest.raises(InputError, match="64 x 64"):
        shapes_detector(Image.new("RGB", (65, 64)))
