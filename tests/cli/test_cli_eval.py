"""`flashjanus eval` with a stand-in for the model: results, files, errors, silence in a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flashjanus
import pytest
from flashjanus.measure.evaluation import shapes
from oracle_model import SAMPLES, OracleModel
from PIL import Image

SHAPES = ["eval", "shapes", "--samples", str(SAMPLES), "--questions", str(SAMPLES), "--steps", "2"]
DETECTOR = "flashjanus.measure.evaluation.detectors:shapes_detector"
Cli = Callable[..., Any]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> OracleModel:
    monkeypatch.setattr(shapes, "JUDGE_SCENES", 70)
    model = OracleModel()
    monkeypatch.setattr(flashjanus, "JanusFlow", model, raising=False)
    return model


class Painter(OracleModel):
    """Paints every prompt as a red circle on white, and answers every question with "A"."""

    def generate_image(self, prompt: list[str], *, callback_on_step_end: Any, **options: Any) -> Any:
        self.calls.append(("generate_image", {"prompt": prompt, **options}))
        for step in range(options["num_inference_steps"]):
            callback_on_step_end(self, step, 0.0, {"latents": None})
        scene = shapes.world.Scene("mixed", "white", (shapes.world.Thing("circle", "red", "center", 32, 32, 15),))
        return SimpleNamespace(images=[Image.fromarray(shapes.world.render(scene)) for _ in prompt])

    def chat(self, messages: Any, **options: Any) -> list[str]:
        return ["A"] * len(messages)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    model = Painter()
    monkeypatch.setattr(flashjanus, "JanusFlow", model, raising=False)
    return model


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
        {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "blue"}], "prompt": "a blue circle"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_shapes_as_a_table(cli: Cli, oracle: OracleModel) -> None:
    result = cli(*SHAPES, "--dtype", "float32", "--model", "some/folder")
    assert (result.code, result.err) == (0, "")
    for words in ("single_object", "color_attribution", "Frechet distance", "relation", "judge on ground truth"):
        assert words in result.out
    assert oracle.calls[0][1]["name"] == "some/folder"
    assert oracle.calls[0][1]["dtype"] == "float32"


def test_shapes_as_json_with_a_sheet(cli: Cli, oracle: OracleModel, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    value = cli(*SHAPES, "--guidance", "3", "--json", "--sheet", sheet).json
    assert value["draw"]["overall"]["score"] == value["answers"]["overall"]["score"] == 1
    assert value["options"]["guidance"] == 3
    assert value["sheet"] == str(sheet)
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_one_half_of_shapes(cli: Cli, oracle: OracleModel) -> None:
    value = cli(*SHAPES, "--only", "answer", "--json").json
    assert value["draw"] is None
    assert value["answers"]["overall"]["score"] == 1


@pytest.mark.parametrize(
    "options",
    [["--samples", "0"], ["--questions", "x"], ["--only", "paint"], ["--sheet", "a.jpg"], ["--sheet", "/proc/a.png"]],
)
def test_bad_options_of_shapes(cli: Cli, oracle: OracleModel, options: list[str]) -> None:
    result = cli(*SHAPES, *options, "--json")
    assert result.code == 2
    assert options[0].lstrip("-") in result.err or "/proc" in result.err


def test_a_suite_is_needed(cli: Cli) -> None:
    result = cli("eval")
    assert result.code == 2
    assert "SUITE" in result.err


def test_geneval_draws_judges_and_writes(cli: Cli, painter: Painter, prompts: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    options = ["--samples", "5", "--steps", "2", "--seed", "7", "--out", out, "--sheet", sheet]
    value = cli("eval", "geneval", prompts, "--detector", DETECTOR, *options, "--json").json
    assert [value["tags"][tag]["score"] for tag in ("single_object", "colors")] == [1, 0]
    assert value["overall"]["score"] == 0.5
    assert value["wrong"][0]["faults"] == ["the circle is red, not blue"]
    drawn = [call for name, call in painter.calls if name == "generate_image"]
    assert [(call["seed"], len(call["prompt"])) for call in drawn] == [(7, 8), (15, 2)]
    assert len(value["paths"]) == 10
    assert value["paths"][-1] == str(out / "00001" / "samples" / "0004.png")
    assert json.loads((out / "00001" / "metadata.jsonl").read_text())["prompt"] == "a blue circle"
    assert sheet.is_file()
    again = cli("eval", "geneval", prompts, "--images", out, "--detector", DETECTOR)
    assert again.code == 0
    assert "single_object       1.000" in again.out
    assert len(painter.calls) == 3  # loaded once, drew twice, and nothing for --images


def test_geneval_without_a_detector_only_draws(cli: Cli, painter: Painter, prompts: Path, tmp_path: Path) -> None:
    refused = cli("eval", "geneval", prompts)
    assert refused.code == 2
    assert "--detector is missing" in refused.err
    assert "--out" in refused.err
    out = tmp_path / "out"
    result = cli("eval", "geneval", prompts, "--out", out, "--samples", "1", "--steps", "1")
    assert result.out.splitlines() == [str(out / f"0000{n}" / "samples" / "0000.png") for n in (0, 1)]
    assert cli("eval", "geneval", prompts, "--out", out).code == 2  # not empty


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "nowhere", "--detector", DETECTOR], "nowhere"),
        (["--images", "nowhere", "--out", "new", "--detector", DETECTOR], "--out"),
        (["--detector", "no_such_module:find"], "no_such_module"),
        (["--detector", DETECTOR, "--samples", "0"], "samples"),
    ],
)
def test_bad_options_of_geneval(cli: Cli, painter: Painter, prompts: Path, options: list[str], words: str) -> None:
    result = cli("eval", "geneval", prompts, *options, "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == "InputError"
    assert words in result.err


def test_choices(cli: Cli, painter: Painter, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    item = {"question": "Which?", "A": "this", "B": "that", "category": "c", "image": "a.png"}
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{**item, "answer": "A"}, {**item, "answer": "B"}, {"data_type": "video"}]))
    result = cli("eval", "choices", path, "--json")
    assert result.json["categories"]["c"]["score"] == 0.5
    assert result.err == "flashjanus: 1 question about videos left out\n"
    assert "0.500" in cli("eval", "choices", path, "--quiet").out
    refused = cli("eval", "choices", path, "--images", tmp_path / "elsewhere")
    assert (refused.code, "item 0: 'image'" in refused.err) == (2, True)
