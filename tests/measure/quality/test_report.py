"""A run on a small model, its report as table and JSON, the picture, and the prompts."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree
from pathlib import Path

import pytest
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.measure.evaluation.statistics import Share
from flashjanus.measure.quality.asked import GENERAL, choose_prompts, noise, prompt_ids, read_prompts
from flashjanus.measure.quality.modes import Mode, modes
from flashjanus.measure.quality.plot import svg
from flashjanus.measure.quality.quality_report import QualityReport
from flashjanus.measure.quality.run import Effort, Likeness, Result, measure_quality
from flashjanus.measure.quality.subject import IMAGE, Subject, Work
from flashjanus.measure.timing import Record

MODEL = {"model": "small", "device": "cpu", "dtype": "float32", "numerics": "exact"}
HEAD = {"kind": "quality", "model": MODEL, "threads": 1}
PROMPTS = ["a circle", "a square", "two triangles"]


def report() -> QualityReport:
    def record(name: str, *times: float) -> Record:
        return Record(IMAGE, name, [[time, time] for time in times])

    pictures = {"colors": Share(9, 10), "counting": Share(7, 10)}
    likeness = Likeness([40.0, 41.0, math.inf], [0.99, 0.999, 1.0], None)
    return QualityReport(
        HEAD,
        [
            Result(
                Mode("exact"), record("exact", 2.0, 2.0, 2.0), [1.0, 2.0, 3.0], None, pictures, {"color": Share(3, 4)}
            ),
            Result(
                Mode("<fast>", sampling={"best_of": 2}),
                record("<fast>", 1.0, 1.1, 0.9),
                [2.0, 3.0, 3.0],
                likeness,
                pictures,
                {"color": Share(2, 4)},
            ),
        ],
    )


def test_the_table() -> None:
    lines = str(report()).splitlines()
    assert lines[0] == "small, float32 on cpu, 1 threads"
    assert [cell.strip() for cell in lines[2].split("  ") if cell] == [
        "mode",
        "image",
        "time / exact",
        "distance / exact",
        "latents dB",
        "cosine",
        "pictures right",
        "answers right",
    ]
    assert lines[4].startswith("<fast>  1.00 s  0.50 [0.45, 0.55] 75 %  1.50 [1.00, 2.00] 75 %  41.0        0.99900")
    assert "0.800 [0.585, 0.905] of 20" in lines[4]
    assert "2/4" in lines[4]
    assert lines[-1] == "<fast>: best_of=2"


def test_json_holds_every_sample() -> None:
    found = json.loads(json.dumps(report().to_json(), allow_nan=False))
    exact, fast = found["modes"]
    assert exact["time_over_exact"] is None
    assert exact["image_s"] == {"median": 2.0, "rounds": [[2.0, 2.0]] * 3}
    assert fast["distance"] == [2.0, 3.0, 3.0]
    assert fast["distance_over_exact"]["value"] == 1.5
    assert fast["likeness"]["latents"]["samples"] == [40.0, 41.0, None]
    assert fast["likeness"]["images"] is None
    assert fast["pictures"]["samples"] == 20
    assert fast["pictures"]["categories"]["counting"]["correct"] == 7
    assert fast["answers"]["overall"]["total"] == 4


def test_the_picture_is_xml_and_names_every_mode() -> None:
    text = svg(report())
    xml.etree.ElementTree.fromstring(text)
    assert "&lt;fast&gt;" in text
    assert "<fast>" not in text
    for title in ("Distance to the converged", "PSNR in dB", "Pictures that are right"):
        assert title in text


def test_a_run(small: JanusFlow) -> None:
    said: list[str] = []
    results = measure_quality(
        lambda **loading: small,
        modes("euler-10", ["same: num_inference_steps=30"]),
        Work(PROMPTS, 0, {"guidance_scale": 1.0}),
        Effort(converged_steps=60, rounds=2),
        done=said.append,
    )
    found = QualityReport(HEAD, results)
    exact, coarse, same = results
    assert exact.likeness is None
    assert same.likeness is not None
    assert same.likeness.latents == [math.inf] * 3
    assert same.distances == exact.distances
    assert coarse.likeness is not None
    assert all(20 < value < 80 for value in coarse.likeness.latents)
    assert coarse.likeness.images is None  # no VAE
    away = found.relative_distances[1]
    assert away is not None
    assert away.low > 2
    assert [len(result.record.rounds) for result in results] == [2, 2, 2]
    assert "solving in 60 steps" in said
    assert "equal" in str(found)


def test_the_converged_solution_can_be_left_out(small: JanusFlow) -> None:
    work = Work(PROMPTS[:1], 0, {})
    results = measure_quality(lambda **_: small, modes(None, []), work, Effort(converged_steps=0, rounds=1))
    assert "distance" not in str(QualityReport(HEAD, results))
    assert "Distance" not in svg(QualityReport(HEAD, results))
    for steps in (30, 1001, -1):
        with pytest.raises(InputError, match="converged_steps: expected an integer from 60"):
            measure_quality(lambda **_: small, modes(None, []), work, Effort(converged_steps=steps))


def test_options_of_loading_reach_the_loader(small: JanusFlow) -> None:
    asked = []

    def load(**loading: object) -> JanusFlow:
        asked.append(loading)
        return small

    work = Work(PROMPTS[:1], 0, {"num_inference_steps": 2})
    measure_quality(load, modes("bfloat16", []), work, Effort(converged_steps=60, rounds=1))
    assert asked == [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "float32", "quantization": None, "numerics": "exact"},
    ]


def test_latents_are_those_that_generate_image_makes(small: JanusFlow) -> None:
    subject = Subject(Mode("m", sampling={"num_inference_steps": 3}), small, Work(PROMPTS, 5, {}))
    z = small.generate_image(PROMPTS, num_inference_steps=3, seed=5, output_type="latent").images
    assert float((subject.latents() - z).abs().max()) == 0


def test_a_mode_that_the_model_cannot_have(small: JanusFlow) -> None:
    with pytest.raises(InputError, match=r"mode m: best_of needs a tokenizer and a VAE"):
        Subject(Mode("m", sampling={"best_of": 2}), small, Work(PROMPTS, 0, {}))
    with pytest.raises(InputError, match=r"mode m: expected options that sample_latents knows, got 'tempo'"):
        Subject(Mode("m", sampling={"tempo": 2}), small, Work(PROMPTS, 0, {}))


class TestPrompts:
    def test_of_files_and_folders(self, tmp_path: Path):
        (tmp_path / "b.txt").write_text("three\n\n  four \n")
        (tmp_path / "a.txt").write_text("\ufeffone\ntwo", encoding="utf-8")
        (tmp_path / "c.md").write_text("five")
        assert read_prompts(tmp_path) == ["one", "two", "three", "four"]
        assert read_prompts(tmp_path / "b.txt") == ["three", "four"]

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"\n \n"])
    def test_what_holds_none(self, tmp_path: Path, content: bytes):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(InputError):
            read_prompts(tmp_path)

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(InputError, match="one prompt per line"):
            read_prompts(tmp_path / "none.txt")

    def test_of_models(self, small: JanusFlow, monkeypatch: pytest.MonkeyPatch):
        assert choose_prompts(small, None) == list(GENERAL)
        monkeypatch.setattr(small, "name", "shapes")
        assert len(choose_prompts(small, None)) == 12
        monkeypatch.setattr(small, "tokenizer", None)
        made = choose_prompts(small, None)
        assert len(made) == len(prompt_ids(small, made)) == len(GENERAL)
        assert len({tuple(ids) for ids in prompt_ids(small, made)}) == len(made)
        assert noise(small, range(2)).shape == (2, 4, 8, 8)
        with pytest.raises(InputError, match="no tokenizer"):
            choose_prompts(small, Path("a.txt"))
