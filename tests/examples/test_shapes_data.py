"""The data: what is held out, what is written, what is plotted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import data_set
import numpy as np
import pytest
from data import DRAWN, TOPIC_SHARES, drawn_scenes, seen_scenes
from data_set import examples, write_data_set
from faces import validation_question
from flashjanus.measure.evaluation import judge, language, world
from PIL import Image
from plots import plot_run, read_log
from recipe import MINIATURE, Recipe, read_recipe, write_recipe
from vae_stage import sample_scenes


def splits(scenes: Sequence[world.Scene]) -> list[set[world.Split]]:
    return [{world.SPLIT_OF[thing.combination] for thing in scene.things} for scene in scenes]


def test_no_scene_of_training_holds_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    scenes = [*drawn_scenes(rng, 300), *seen_scenes(rng, 300), *sample_scenes(rng, 300)]
    assert all(found == {"train"} for found in splits(scenes))
    assert {scene.kind for scene in scenes} == {*DRAWN, "mixed"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_scene_of_the_other_splits_holds_one(split: world.Split) -> None:
    scenes = [world.sample_scene(np.random.default_rng(k), split, data_set.KINDS[k % 7]) for k in range(140)]
    assert all(split in found for found in splits(scenes))
    asked = [validation_question(topic, (k,)) for k in range(5) for topic in language.TOPICS]
    assert all("validation" in found for found in splits([scene for scene, _ in asked]))
    assert [question.topic for _, question in asked] == [*language.TOPICS] * 5


def test_every_color_shape_and_place_is_seen_in_training() -> None:
    train = [combination for combination, split in world.SPLIT_OF.items() if split == "train"]
    for names, part in zip((world.COLORS, world.SHAPES, world.POSITIONS), zip(*train, strict=True), strict=True):
        assert set(part) == set(names)
    looks = {(color, shape) for color, shape, _ in train}
    assert len(looks) == len(world.COLORS) * len(world.SHAPES)


def test_shares_are_shares() -> None:
    assert sum(DRAWN.values()) == pytest.approx(1)
    assert sum(TOPIC_SHARES.values()) == pytest.approx(1)
    assert set(TOPIC_SHARES) == set(language.TOPICS)


def test_the_data_set_is_the_same_from_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_data_set(tmp_path / name, "test", 14, seed=3)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [*(f"{k:06}.png" for k in range(14)), "scenes.jsonl"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    shorter = [record for _, record in examples("test", 3, seed=3)]
    lines = (tmp_path / "a" / "scenes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[:3]] == json.loads(json.dumps(shorter))
    others = [next(examples(split, 1, seed))[1]["scene"] for split, seed in (("test", 4), ("train", 3))]
    assert shorter[0]["scene"] not in others


def test_its_pictures_show_what_its_records_say(tmp_path: Path) -> None:
    write_data_set(tmp_path / "set", "validation", 14, seed=0)
    for line in (tmp_path / "set" / "scenes.jsonl").read_text().splitlines():
        record = json.loads(line)
        with Image.open(tmp_path / "set" / record["image"]) as image:
            sight = judge.look(np.asarray(image))
        things = record["scene"]["things"]
        assert sight.background == record["scene"]["background"]
        assert sorted((seen.color, seen.shape) for seen in sight.things) == sorted(
            (thing["color"], thing["shape"]) for thing in things
        )
        assert (record["caption"] is None) == (record["scene"]["kind"] == "mixed")
        assert {question["topic"] for question in record["questions"]} >= {"count", "yes_no", "background"}


def test_an_existing_folder_is_refused_and_a_failure_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.setattr(sys, "argv", ["data_set.py", str(tmp_path / "set"), "--count", "1"])
    with pytest.raises(SystemExit) as stopped:
        data_set.main()
    assert stopped.value.code == 1
    assert "exists; choose another folder" in capsys.readouterr().err

    def broken(scene: world.Scene) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(world, "render", broken)
    with pytest.raises(OSError, match="disk full"):
        write_data_set(tmp_path / "new", "train", 2, seed=0)
    assert not (tmp_path / "new").exists()


def test_a_log_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "vit.jsonl"
    lines = [{"step": 50, "things": 3.0}, {"step": 100, "things": 2.0}, {"step": 50, "things": 1.0}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 150, "th')
    assert read_log(log) == [{"step": 50, "things": 1.0}, {"step": 100, "things": 2.0}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_plots_show_the_curves(tmp_path: Path) -> None:
    records = [
        {"step": 50 * k, "seconds": 1.0, "things": 2.0 / k, "_right": k / 9, "per_second": 1.0, "overall": k / 9}
        for k in range(1, 8)
    ]
    (tmp_path / "vit.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "tune.jsonl").write_text(json.dumps({"step": 1, "flow": float("nan"), "align": 0.0}) + "\n")
    assert plot_run(tmp_path, Recipe()) == [tmp_path / "vit.png", tmp_path / "tune.png"]
    with Image.open(tmp_path / "vit.png") as plot:
        assert plot.size == (900, 3 * 300)
        for top, falls in ((0, True), (300, False), (600, False)):
            area = np.asarray(plot)[top + 40 : top + 250, 70:710].astype(int)
            rows, columns = np.nonzero(area[..., 2] - area[..., 0] > 60)  # the first curve is blue
            assert columns.max() - columns.min() > 500
            early, late = rows[columns < 200].mean(), rows[columns > 500].mean()
            assert (late - early > 30) if falls else (early - late > 30)
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_keeps_its_recipe(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) == Recipe()
    write_recipe(tmp_path, MINIATURE, seed=0)
    assert read_recipe(tmp_path).pictures("pretrain") == MINIATURE.pictures("pretrain")
