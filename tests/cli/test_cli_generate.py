"""`flashjanus generate`, with a stand-in for the model."""

from __future__ import annotations

import sys
from pathlib import Path

import flashjanus
import pytest
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.cli.destination import Destination
from flashjanus.disk.names import slug
from flashjanus.errors import InputError, OutputError
from PIL import Image


def test_writes_a_png_with_its_recipe_and_prints_the_path(cli, model, tmp_path: Path) -> None:
    result = cli(
        "generate", "A red Circle!", "--seed", "5", "--steps", "4", "--guidance", "3.5", "--out", tmp_path / "new"
    )
    path = tmp_path / "new" / "a-red-circle-5.png"
    assert result.code == 0
    assert result.out == f"{path}\n"
    with Image.open(path) as image:
        assert image.text == {
            "prompt": "A red Circle!",
            "seed": "5",
            "steps": "4",
            "guidance": "3.5",
            "model": "shapes",
            "Software": f"flashjanus {flashjanus.__version__}",
        }
    assert list(path.parent.iterdir()) == [path]


def test_options_reach_the_model(cli, model, tmp_path: Path) -> None:
    options = [
        "--model",
        "m",
        "--vae",
        "v",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--numerics",
        "official",
        "--vae-dtype",
        "float32",
        "--attention",
        "native,torch",
    ]
    command = ["generate", "a", "b", "--num-images", "2", "--seed", "5", "--out", tmp_path]
    assert cli(*command, *options, "--best-of", "3").code == 0
    loaded = {
        "name": "m",
        "vae": "v",
        "device": "cpu",
        "dtype": "bfloat16",
        "vae_dtype": "float32",
        "quantization": None,
        "numerics": "official",
        "implementations": {"attention": ["native", "torch"]},
        "cuda_graphs": True,
        "buckets": {},
    }
    assert model.called("from_pretrained") == loaded
    assert model.called("stream_images") == {
        "prompt": ["a", "b"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 30,
        "guidance_scale": 2.0,
        "solver": "euler",
        "timestep_shift": 1.0,
        "guidance_interval": (0.0, 1.0),
        "guidance_rescale": 0.0,
        "uncond_every": 1,
        "step_cache": 1,
        "seed": 5,
        "best_of": 3,
        "accept_above": None,
    }


def test_sampling_options_reach_the_model_and_the_picture(cli, model, tmp_path: Path) -> None:
    options = ["--preset", "fast", "--steps", "5", "--guidance-interval", "0.1", "0.6", "--uncond-every", "2"]
    more = ["--guidance-rescale", "0.5", "--solver", "ab2", "--timestep-shift", "1", "--step-cache", "0,0.5"]
    result = cli("generate", "a", "--seed", "1", "--json", "--out", tmp_path, *options, *more)
    asked = model.called("stream_images")
    recipe = dict(solver="ab2", guidance_interval=(0.1, 0.6), guidance_rescale=0.5, uncond_every=2)
    recipe |= dict(step_cache=(0.0, 0.5))
    assert asked == dict(
        prompt=["a"],
        num_images_per_prompt=1,
        num_inference_steps=5,
        guidance_scale=2.0,
        timestep_shift=1.0,
        seed=[1],
        best_of=None,
        accept_above=None,
        **recipe,
    )
    assert result.json["steps"] == 5
    assert {name: result.json[name] for name in recipe} == {
        **recipe,
        "guidance_interval": [0.1, 0.6],
        "step_cache": [0, 0.5],
    }
    assert "timestep_shift" not in result.json, "as the official code has it"
    with Image.open(tmp_path / "a-1.png") as image:
        assert (image.text["solver"], image.text["uncond_every"]) == ("ab2", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "num_inference_steps: expected an integer from 1 to 1000, got 0"),
        (["--preset", "best"], "preset: expected one of 'exact', 'balanced', 'fast', got 'best'"),
        (["--solver", "rk4"], "solver: expected one of 'euler'"),
        (["--guidance-interval", "0.6", "0.2"], "low <= high"),
    ],
)
def test_impossible_sampling_is_refused_before_the_model_loads(
    cli, model, tmp_path: Path, options: list[str], message: str
) -> None:
    result = cli("generate", "a", *options, "--out", tmp_path)
    assert (result.code, message in result.err) == (2, True)
    assert model.calls == []


def test_threads(cli, model, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert cli("generate", "a", "--threads", "3", "--out", tmp_path).code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    result = cli("generate", "a", "--threads", "0", "--out", tmp_path)
    assert result.code == 2
    assert "--threads must be at least 1, got 0" in result.err
    result = cli("generate", "a", "--threads", "99999999", "--out", tmp_path)
    assert (result.code, "--threads must be at most 1024" in result.err) == (2, True)


def test_json(cli, model, tmp_path: Path) -> None:
    result = cli("generate", "a", "b", "--num-images", "2", "--seed", "1", "--steps", "2", "--json", "--out", tmp_path)
    assert result.json == {
        "paths": [str(tmp_path / name) for name in ("a-1.png", "a-2.png", "b-3.png", "b-4.png")],
        "prompts": ["a", "a", "b", "b"],
        "seeds": [1, 2, 3, 4],
        "scores": None,
        "steps": 2,
        "guidance": 2.0,
        "model": "shapes",
        "device": "cpu",
        "dtype": "float32",
        "quantization": None,
        "numerics": "exact",
        "timings": {"total": 0.5},
    }


def test_the_best_of_several(cli, model, tmp_path: Path) -> None:
    result = cli("generate", "a", "--best-of", "4", "--accept-above", "0.5", "--seed", "1", "--json", "--out", tmp_path)
    assert result.json["scores"] == [0.9]
    asked = model.called("stream_images")
    assert (asked["best_of"], asked["accept_above"], asked["num_images_per_prompt"]) == (4, 0.5, 1)
    assert asked["seed"] == 1, "of the first candidate, as there are more than images"
    with Image.open(tmp_path / "a-1.png") as image:
        assert image.text["score"] == "0.9000"


def test_enlarged_pixels_are_squares(cli, model, tmp_path: Path) -> None:
    plain, large = (
        Image.open(cli("generate", "a", "--seed", "1", "--enlarge", factor, "--out", tmp_path).out.strip())
        for factor in ("1", "3")
    )
    assert (plain.size, large.size) == ((8, 8), (24, 24))
    assert large.text == plain.text
    assert large.tobytes() == plain.resize((24, 24), Image.Resampling.BOX).tobytes()


@pytest.mark.parametrize("factor", ["0", "-2", "17"])
def test_an_impossible_enlargement_is_refused_before_the_model_loads(cli, model, tmp_path: Path, factor: str) -> None:
    result = cli("generate", "a", "--enlarge", factor, "--out", tmp_path)
    assert (result.code, f"--enlarge must be 1 to 16, got {factor}" in result.err) == (2, True)
    assert model.calls == []


def test_progress_counts_the_steps_of_all_batches(cli, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", "a", "--num-images", str(ROWS_AT_ONCE + 1), "--steps", "3", "--out", tmp_path]
    assert "drawing" not in cli(*command).err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = cli(*command)
    assert "6/6" in result.err
    assert "on cpu (asked for)" in result.err
    assert "drawing" not in cli(*command, "--quiet").err


def test_nothing_is_overwritten_unless_asked(cli, model, tmp_path: Path) -> None:
    command = ["generate", "a", "a", "--seed", "1", "--num-images", "1"]
    first = cli(*command, "--out", tmp_path).out.split()
    second = cli(*command, "--out", tmp_path).out.split()
    assert [Path(p).name for p in first] == ["a-1.png", "a-2.png"]
    assert [Path(p).name for p in second] == ["a-1-2.png", "a-2-2.png"]
    assert cli(*command, "--out", tmp_path, "--overwrite").out.split() == first
    assert len(list(tmp_path.iterdir())) == 4


def test_one_file(cli, model, tmp_path: Path) -> None:
    target = tmp_path / "cat.PNG"
    assert cli("generate", "a", "--out", target).out == f"{target}\n"
    assert cli("generate", "a", "--out", target).out == f"{tmp_path / 'cat-2.PNG'}\n"
    target.write_bytes(b"")
    assert cli("generate", "a", "--out", target, "--overwrite").out == f"{target}\n"
    assert target.read_bytes().startswith(b"\x89PNG")


def test_a_folder_may_be_called_png(cli, model, tmp_path: Path) -> None:
    (tmp_path / "all.png").mkdir()
    assert (
        cli("generate", "a", "--seed", "7", "--out", tmp_path / "all.png").out
        == f"{tmp_path / 'all.png' / 'a-7.png'}\n"
    )
    assert (
        cli("generate", "a", "--seed", "7", "--out", f"{tmp_path}/new.png/").out
        == f"{tmp_path / 'new.png' / 'a-7.png'}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["a", "b", "--out", "one.png"], "InputError", "one file for 2 images"),
        (["a", "--num-images", "3", "--out", "one.png"], "InputError", "one file for 3 images"),
        (["a", "--out", "cat.jpg"], "InputError", "use cat.png"),
        (["a", "--out", ""], "InputError", "--out is empty"),
        (["a", "--out", "file/inside"], "OutputError", "cannot write to file/inside"),
        (["a", "--out", "file"], "OutputError", "Not a directory"),
        (["a", "--out", "file/one.png"], "OutputError", "cannot write to file"),
        (["a", "--out", "/proc/images"], "OutputError", "cannot write to /proc/images"),
        (["a", "--out", "x" * 300 + ".png"], "OutputError", "file name longer"),
        (["a", "--out", "x" * 300], "OutputError", "File name too long"),
        (["a", "--out", "link/loop"], "OutputError", "cannot write"),
    ],
)
def test_an_unwritable_place_is_found_before_the_work(
    cli, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], kind: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("link").symlink_to("link")
    result = cli("generate", *arguments, "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == kind
    assert message in result.json["error"]["message"]
    assert model.calls == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_failure_leaves_no_folder(cli, model, tmp_path: Path) -> None:
    model.fail = InputError("prompt: expected text, got none")
    result = cli("generate", "a", "--out", tmp_path / "new")
    assert result.code == 2
    assert result.err.endswith("flashjanus: error: prompt: expected text, got none\n")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_fails_later(tmp_path: Path) -> None:
    destination = Destination(str(tmp_path / "new" / "images"), 1, overwrite=False)
    (tmp_path / "new").write_text("now a file")
    with pytest.raises(OutputError, match="Not a directory"):
        destination.make_folder()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red Circle!", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("日本の 猫", "日本の-猫"),
        ("!!!", "image"),
        ("word " * 100, "word-word-word-word-word-word-word-word-word"),
        ("a red circle to the left of a blue square", "a-red-circle-to-the-left-of-a-blue-square"),
        ("a red circle on a background of " + "long" * 20, "a-red-circle-on-a-background-of"),
        ("x" * 100, "x" * 48),
        ("a\nb\0c", "a-b-c"),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_a_slug_fits_every_file_system() -> None:
    widest = slug("\U00020000" * 1000)
    assert len(f"{widest}-{2**64 - 1}-100.png".encode()) < 255
