"""The whole evaluation on a stand-in whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flashjanus.errors import CheckpointError, InputError
from flashjanus.measure.evaluation import evaluate_shapes, shapes
from flashjanus.measure.evaluation.language import TOPICS
from flashjanus.measure.evaluation.sets import CATEGORIES
from flashjanus.measure.evaluation.sheet import SIDE, Picture, draw_sheet
from oracle_model import SAMPLES, OracleModel
from PIL import Image
from safetensors.torch import save_file

OPTIONS = {"samples": SAMPLES, "questions": SAMPLES, "steps": 3}
JUDGED = 70


@pytest.fixture(autouse=True)
def fewer_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "JUDGE_SCENES", JUDGED)


def test_a_perfect_model_scores_one(tmp_path: Path) -> None:
    model = OracleModel()
    report = evaluate_shapes(model, **OPTIONS, sheet=tmp_path / "sheet.png")
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(value["draw"]["categories"]) == list(CATEGORIES)
    assert all(share["score"] == 1 and share["total"] == SAMPLES for share in value["draw"]["categories"].values())
    assert value["draw"]["overall"]["score"] == value["draw"]["overall"]["high"] == 1
    assert 0.5 < value["draw"]["overall"]["low"] < 1
    assert value["draw"]["frechet"]["distance"] == pytest.approx(0, abs=1e-9)
    assert value["draw"]["frechet"]["floor"] > 0
    assert list(value["answers"]["topics"]) == list(TOPICS)
    assert value["answers"]["overall"]["correct"] == SAMPLES * len(TOPICS)
    assert value["judge"]["overall"]["correct"] == value["judge"]["overall"]["total"] == JUDGED
    assert value["vae_ceiling"] is None
    assert "evaluation.safetensors" in value["vae_ceiling_absent"]
    assert value["options"] == {**OPTIONS, "guidance": 2.0, "seed": 0}
    assert (value["model"], value["dtype"]) == ("oracle", "float32")
    assert "VAE ceiling unknown" in str(report)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 4 * SIDE


def test_what_is_wrong_lowers_its_own_score_alone() -> None:
    black_backgrounds = frozenset(k for k in range(6 * SAMPLES) if k % 6 == 2)  # blank pictures for all of counting
    model = OracleModel(blank=black_backgrounds, wrong=frozenset({"shape"}))
    report = evaluate_shapes(model, **OPTIONS)
    assert report.draw is not None
    assert report.answers is not None
    assert [share.correct for share in report.draw.categories.values()] == [4, 4, 0, 4, 4, 4]
    assert report.draw.overall.value == pytest.approx(5 / 6)
    assert report.draw.faults["counting"]["count"] == SAMPLES
    assert report.draw.faults["colors"] == {}
    assert report.draw.frechet.distance > 0
    assert {topic for topic, share in report.answers.groups.items() if share.value < 1} == {"shape"}
    assert report.answers.overall.value == pytest.approx(6 / 7)


def test_prompts_are_drawn_in_batches_from_their_own_seeds_and_questions_are_greedy() -> None:
    model = OracleModel()
    evaluate_shapes(model, **OPTIONS, guidance=3.0)
    drawn = [options for name, options in model.calls if name == "generate_image"]
    assert [(options["seed"], len(options["prompt"])) for options in drawn] == [(0, 8), (8, 8), (16, 8)]
    assert all(options["guidance_scale"] == 3.0 and options["steps"] == 3 for options in drawn)
    asked = [options for name, options in model.calls if name == "chat"]
    assert all(options["max_new_tokens"] == 8 and options["do_sample"] is False for options in asked)


@pytest.mark.parametrize(("only", "left"), [("draw", "generate_image"), ("answer", "chat")])
def test_one_half_can_be_left_out(only: str, left: str) -> None:
    model = OracleModel()
    report = evaluate_shapes(model, **OPTIONS, only=only)
    assert {name for name, _ in model.calls} == {left}
    assert (report.draw is None, report.answers is None) == (only == "answer", only == "draw")
    assert str(report)


def test_the_ceiling_is_read_from_the_models_folder(tmp_path: Path) -> None:
    numbers = torch.arange(12.0)
    numbers[[0, 6]] = 1.0  # the two scenes of "single_object" come back as another
    save_file(
        {"latents": numbers[:, None, None, None].expand(-1, 4, 8, 8).clone()}, tmp_path / "evaluation.safetensors"
    )
    report = evaluate_shapes(OracleModel(name=str(tmp_path)), **OPTIONS, only="draw")
    assert report.ceiling is not None
    assert (report.ceiling.overall.correct, report.ceiling.overall.total) == (10, 12)
    assert report.ceiling.groups["single_object"].correct == 0
    assert report.ceiling_absent is None
    assert "VAE ceiling" in str(report)


@pytest.mark.parametrize("content", [{"latent": torch.zeros(1, 4, 8, 8)}, {"latents": torch.zeros(4, 8)}, None])
def test_damaged_latents_are_refused(tmp_path: Path, content: dict[str, torch.Tensor] | None) -> None:
    path = tmp_path / "evaluation.safetensors"
    if content is None:
        path.write_bytes(b"no tensors")
    else:
        save_file(content, path)
    with pytest.raises(CheckpointError, match=r"evaluation\.safetensors.*latents"):
        evaluate_shapes(OracleModel(name=str(tmp_path)), **OPTIONS, only="draw")


def test_a_model_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"64 x 64 pixels.*got 96 x 96"):
        evaluate_shapes(OracleModel(size=96), **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"questions": -1}, {"seed": -1}, {"only": "both"}, {"only": "answer", "sheet": "a.png"}],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, object]) -> None:
    model = OracleModel()
    with pytest.raises(InputError, match=next(iter(options)) if len(options) == 1 else "sheet"):
        evaluate_shapes(model, **options)  # type: ignore[arg-type]
    assert model.calls == []


def test_a_sheet_enlarges_small_pictures_and_cuts_long_words() -> None:
    small, large = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (800, 400), "blue")
    rows = [
        ("one", [Picture(small, "a" * 500, True, "right"), Picture(large, "b c", False, "wrong " * 90)]),
        ("two", []),
    ]
    sheet = draw_sheet("title", rows)
    colors = {color: count for count, color in sheet.getcolors(1 << 20) or []}
    assert colors[255, 0, 0] == SIDE * SIDE
    assert colors[0, 0, 255] == SIDE * SIDE // 2
