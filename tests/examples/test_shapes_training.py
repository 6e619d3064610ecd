"""A miniature of the built-in model: trained, written, read by the engine; killed, compared, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from checkpoints import TrainingError
from data import Encoder, answer_batch
from faces import Faces, validation_question
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.measure.evaluation import evaluate_shapes, world
from loop import Draw, averaged
from package import TOKENIZER_FILES, read_model
from pictures import pixels
from plots import read_log
from recipe import MINIATURE
from small_model import normal
from stages import Base, Trainer
from torch import Tensor
from train import chosen_recipe, parse, prepare, train

if TYPE_CHECKING:
    from conftest import Run

CPU = torch.device("cpu")


def test_losses_fall(miniature: Run) -> None:
    records = {stage.name: read_log(miniature.folder / f"{stage.name}.jsonl") for stage in MINIATURE.stages()}
    assert [found[-1]["step"] for found in records.values()] == [stage.steps for stage in MINIATURE.stages()]
    first, last = records["pretrain"]
    assert last["flow"] < 0.95 * first["flow"]
    assert last["align"] < first["align"]
    assert last["answer"] < first["answer"]
    assert records["adapt"][-1]["flow"] > first["flow"] > records["tune"][-1]["flow"]
    assert 0 <= last["overall"] <= 1
    assert 0 <= last["answers"] <= 1


def test_a_run_leaves_plots_and_sheets(miniature: Run) -> None:
    names = {path.name for path in miniature.folder.glob("*.png")}
    assert names == {f"{stage.name}.png" for stage in MINIATURE.stages()} | {
        "samples-pretrain-000020.png",
        "samples-pretrain-000040.png",
        "samples-tune-000010.png",
    }


def test_written_weights_are_the_trained_ones_in_bf16(miniature: Run) -> None:
    trained = miniature.trainer.model.official_state()
    written = read_model(miniature.folder / "model")[0].official_state()
    assert list(trained) == list(written)
    assert all(torch.equal(written[name], trained[name].bfloat16().float()) for name in trained)


@pytest.fixture(scope="module", params=["miniature", "shapes"])
def written(request: pytest.FixtureRequest, miniature: Run) -> Path:
    """A model as it was written: the miniature, and the one that comes with the package."""
    return builtin_folder() if request.param == "shapes" else miniature.folder / "model"


@pytest.fixture(scope="module")
def engine(written: Path) -> JanusFlow:
    return JanusFlow.from_pretrained(written, device="cpu", dtype="float32", vae_dtype="float32")


@pytest.fixture(scope="module")
def faces(written: Path) -> Faces:
    """The training modules with the weights that were written."""
    tokenizer = Tokenizer.from_files(*(written / name for name in TOKENIZER_FILES))
    return Faces(*read_model(written), Encoder(tokenizer))


def test_the_engine_draws_what_the_training_modules_draw(engine: JanusFlow, faces: Faces) -> None:
    texts = ["a red circle", "an image of a blue square to the left of a green triangle on a black background"]
    prompts = [faces.encoder.prompt(text) for text in texts]
    noise = normal(5, 2, 4, 8, 8)
    expected = faces.sample(prompts, noise, steps=6, guidance=3.0)
    tag = faces.encoder.tokenizer.image_gen_id
    got = engine.sample_latents([[*p, tag] for p in prompts], noise, guidance_scale=3.0, num_inference_steps=6)
    assert (got - noise).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(engine.decode_latents(got), faces.vae.decode(expected), rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_engine_answers_what_the_training_modules_answer(engine: JanusFlow, faces: Faces) -> None:
    for seed, topic in enumerate(("color", "relation", "count")):
        scene, question = validation_question(topic, (seed,))
        x = pixels([world.render(scene)])
        batch = answer_batch(faces.encoder, [[question]], CPU)
        logits = faces.model.answers(
            batch.ids, batch.packed, faces.picture_tokens(x, frozen=True), faces.encoder.image_start
        )
        column = int((batch.targets[0] != -100).nonzero()[0])
        ids = torch.tensor([[*faces.encoder.picture, *faces.encoder.question(question.text)]])
        got = engine.next_token_logits(ids, torch.ones_like(ids), x[None])
        torch.testing.assert_close(got[0], logits[0, column], rtol=1e-4, atol=1e-4)


def test_the_engine_scores_the_written_model(miniature: Run) -> None:
    report = evaluate_shapes(miniature.folder / "model", samples=1, questions=1, steps=2, device="cpu")
    assert report.ceiling is not None, report.ceiling_absent
    assert report.ceiling.overall.total == MINIATURE.ceiling


class Killed(Exception):
    """Stands for the end of the process at that line."""


def copied(run: Run, folder: Path) -> Path:
    """The run as it was before unified pre-training."""
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("pretrain*", "tune*", "samples*"))
    return folder


SHORT = replace(
    MINIATURE, pretrain=replace(MINIATURE.pretrain, steps=4, save_every=0), tune=replace(MINIATURE.tune, steps=2)
)


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    miniature: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(copied(miniature, tmp_path / "whole"), SHORT, 0, CPU)
    killed = prepare(copied(miniature, tmp_path / "killed"), SHORT, 0, CPU)
    inner, steps = killed.draw_losses, iter(range(3))

    def until_killed(draw: Draw) -> dict[str, Tensor]:
        if next(steps) == 2:
            raise Killed
        return inner(draw)

    monkeypatch.setattr(killed, "draw_losses", until_killed)
    with pytest.raises(Killed):
        killed.run()
    assert (tmp_path / "killed" / "pretrain-00000002.pt").is_file()
    resumed = train(tmp_path / "killed", SHORT, 0, CPU)
    for (name, p), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, other), name
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_full_disk_costs_the_sheet_and_not_the_training(
    miniature: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniature.trainer, "folder", tmp_path / "gone")
    assert "overall" in miniature.trainer.watch("x")
    assert "no plots or sheet this time" in capsys.readouterr().out


@pytest.fixture
def unchanged(miniature: Run) -> Iterator[None]:
    """The base is only read."""
    before = {path: path.stat().st_mtime_ns for path in miniature.folder.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in miniature.folder.rglob("*")} == before


TWO_STEPS = {
    name: replace(getattr(MINIATURE, name), steps=2, save_every=600.0) for name in ("adapt", "pretrain", "tune")
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("way", ["as it is", "no alignment", "shared encoder"])
def test_ways_of_training_are_compared_on_one_base(way: str, miniature: Run, tmp_path: Path) -> None:
    recipe = replace(MINIATURE, **TWO_STEPS)
    if way == "no alignment":
        recipe = replace(recipe, alignment=0.0)
    if way == "shared encoder":
        recipe = replace(recipe, shared=True)
    base = Base(miniature.folder, 0)
    trainer = train(tmp_path, recipe, 1, CPU, base)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["seed"] == 1
    assert {"overall", "answers", "single_object", "answer_color"} <= set(scores)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert ("align" in read_log(tmp_path / "pretrain.jsonl")[-1]) == (way != "no alignment")
    assert (tmp_path / "answer.jsonl").exists() == (way == "shared encoder")
    assert trainer.latents.equal(miniature.trainer.latents)


def test_with_one_encoder_questions_train_the_generation_encoder(miniature: Run) -> None:
    def trained(shared: bool) -> set[str]:
        """What one question's gradient reaches."""
        old = miniature.trainer
        trainer = Trainer(old.model, old.vae, old.encoder, old.folder, 0, replace(MINIATURE, shared=shared))
        old.model.requires_grad_(True)
        old.model.zero_grad()
        losses = trainer.answer_losses(Draw.of(0, MINIATURE.tune, 0), 2, 1.0, frozen=False)
        torch.autograd.backward(losses["answer"])
        return {name.split(".")[0].split("/")[0] for name, p in old.model.named_parameters() if p.grad is not None}

    shared, decoupled = trained(True), trained(False)
    assert {"vision_gen_enc_model", "vision_gen_enc_aligner", "language_model"} <= shared
    assert not {"vision_und_enc_model", "vision_und_enc_aligner"} & shared
    assert {"vision_und_enc_model", "vision_und_enc_aligner", "language_model"} <= decoupled
    assert "vision_gen_enc_model" not in decoupled


def test_a_base_that_is_not_finished_is_refused(miniature: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"vae-whitened\.pth is missing"):
        train(tmp_path / "a", MINIATURE, 0, CPU, Base(tmp_path / "none", 0))
    (tmp_path / "part").mkdir()
    shutil.copy(miniature.folder / "vae-whitened.pth", tmp_path / "part")
    with pytest.raises(TrainingError, match=r"vit-00000030\.pt is missing"):
        train(tmp_path / "b", MINIATURE, 0, CPU, Base(tmp_path / "part", 0))
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["vae-whitened.pth"]


def test_options_choose_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(tmp_path), "--miniature", "--alignment", "0", "--shared-encoder", "--pretrain-steps", "7"]
    options += ["--tune-steps", "3"]
    pretrain = replace(MINIATURE.pretrain, steps=7)
    tune = replace(MINIATURE.tune, steps=3)
    assert chosen_recipe(parse(options)) == replace(MINIATURE, alignment=0.0, shared=True, pretrain=pretrain, tune=tune)
    with pytest.raises(SystemExit):
        parse([str(tmp_path), "--device", "cuda", "--processes", "2"])
    assert "--processes is for CPUs" in capsys.readouterr().err


def test_watching_leaves_the_parameters_as_they_were() -> None:
    parameter, average = torch.nn.Parameter(torch.zeros(2)), torch.ones(2)
    with averaged([parameter], [average]):
        assert parameter.tolist() == [1, 1]
    assert (parameter.tolist(), average.tolist()) == ([0, 0], [1, 1])
