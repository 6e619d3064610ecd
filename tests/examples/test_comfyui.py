"""The nodes for ComfyUI, loaded and run as it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_stand_in import Comfy, InterruptProcessingException
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.errors import CheckpointError, FlashJanusError, InputError
from PIL import Image
from small_adapter import write_adapter

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "comfyui"


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    installed = Comfy(tmp_path / "models")
    installed.install(PACKAGE, monkeypatch)
    return installed


def workflow(**changed: dict[str, Any]) -> dict[str, Any]:
    """The one that comes with the nodes, in few steps; changed: inputs of nodes, by their number."""
    nodes: dict[str, Any] = json.loads((PACKAGE / "workflow_api.json").read_text())
    nodes["1"]["inputs"]["dtype"] = "float32"
    nodes["2"]["inputs"]["steps"] = 4
    for number, inputs in changed.items():
        nodes[number.removeprefix("node_")]["inputs"].update(inputs)
    return nodes


def test_images_are_drawn_with_progress_and_previews(comfy: Comfy) -> None:
    [images] = comfy.run(workflow(), "2")
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    model = JanusFlow.from_pretrained("shapes", dtype="float32")
    prompt = workflow()["2"]["inputs"]["prompt"]
    alone = model.generate_image(prompt, num_inference_steps=4, guidance_scale=2.0, seed=8, output_type="np").images
    assert torch.equal(images[1:], torch.from_numpy(alone))
    assert [(done, of) for done, of, _ in comfy.progress] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert all(isinstance(preview, Image.Image) for *_, preview in comfy.progress)


def test_a_batch_of_many_has_one_bar(comfy: Comfy) -> None:
    [images] = comfy.run(workflow(node_2=dict(batch_size=9, steps=1, preset="fast")), "2")
    assert len(images) == 9
    assert [(done, of) for done, of, _ in comfy.progress] == [(8, 9), (9, 9)]


def test_without_a_map_there_is_no_preview(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    [loaded] = comfy.run(workflow(), "1")
    loaded.model.runner.previews.map = None
    monkeypatch.setattr(JanusFlow, "from_pretrained", lambda *source, **options: loaded.model)
    comfy.run(workflow(node_2=dict(batch_size=1, steps=1)), "2")
    assert comfy.progress == [(1, 1, None)]


def test_questions_are_answered_for_each_image_or_for_all(comfy: Comfy) -> None:
    [answers] = comfy.run(workflow(node_2=dict(steps=10)), "4")
    assert answers == ["red", "red"]
    assert comfy.shown["4"] == {"text": ("red\n\nred",)}
    assert comfy.progress[-2:] == [(1, 2, None), (2, 2, None)]
    sampled = dict(together=True, temperature=1.0, seed=3, max_new_tokens=2)
    [together] = comfy.run(workflow(node_4=sampled), "4")
    assert len(together) == 1


def test_images_of_other_nodes_may_leave_the_range(comfy: Comfy) -> None:
    """As those do that scale images."""
    [loaded] = comfy.run(workflow(), "1")
    image = torch.full((1, 40, 60, 3), 1.1)
    image[:, 10:30, 20:40, 1:] = -0.1
    options = dict(max_new_tokens=8, temperature=0.0, seed=0, together=False)
    output = comfy.nodes["FlashJanusAsk"].execute(loaded, image, "What color is the square?", **options)
    assert output.args[0] == ["red"]


def test_cancel_ends_a_drawing_and_an_answer(comfy: Comfy) -> None:
    comfy.interrupt = 2
    with pytest.raises(InterruptProcessingException):
        comfy.run(workflow(), "2")
    assert len(comfy.progress) == 2
    comfy.interrupt = len(comfy.progress) + 4  # all steps of the drawing
    with pytest.raises(InterruptProcessingException):
        comfy.run(workflow(), "4")
    assert comfy.shown == {}
    assert comfy.run(workflow(), "2")[0].shape == (2, 64, 64, 3)


def with_loras(*loras: tuple[str, float], **changed: dict[str, Any]) -> dict[str, Any]:
    """The workflow with a chain of LoRAs, nodes 11, 12 and so on, between the loader and the others."""
    nodes, last = workflow(**changed), "1"
    for number, (lora, strength) in enumerate(loras, 11):
        inputs = {"model": [last, 0], "lora": lora, "strength": strength}
        last = str(number)
        nodes[last] = {"class_type": "FlashJanusLoadLora", "inputs": inputs}
    for number in ("2", "4"):
        nodes[number]["inputs"]["model"] = [last, 0]
    return nodes


@pytest.fixture
def adapted(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> tuple[JanusFlow, JanusFlow]:
    """The model that all loaders give, and another, which has the LoRAs ink and gold by the API. ComfyUI has their
    folders."""
    model, by_hand = (JanusFlow.from_pretrained("shapes", dtype="float32") for _ in range(2))
    by_hand.reserve_adapters(4, 16)
    for name, settings in (("ink", dict(rank=4)), ("gold", dict(rank=9, seed=1, targets=("o_proj",)))):
        write_adapter(comfy.models / "more" / name, model.config.language, **settings)
        by_hand.load_adapter(comfy.models / "more" / name)
    monkeypatch.setattr(JanusFlow, "from_pretrained", lambda *source, **options: model)
    return model, by_hand


def test_loras_work_for_images_and_answers_as_their_sum_does(
    comfy: Comfy, adapted: tuple[JanusFlow, JanusFlow]
) -> None:
    model, by_hand = adapted
    by_hand.combine_adapters("both", {"ink": 3.0, "gold": -1.0})

    def expected(adapter: str | None) -> torch.Tensor:
        options = dict(num_images_per_prompt=2, num_inference_steps=4, guidance_scale=2.0, seed=7, output_type="np")
        return torch.from_numpy(
            by_hand.generate_image(workflow()["2"]["inputs"]["prompt"], **options, adapter=adapter).images
        )

    weights = comfy.models / "more" / "gold" / "adapter_model.safetensors"
    both = [("ink", 3.0), (str(weights), -1.0)]
    for chain, adapter in (([("ink", 1.0)], "ink"), (both, "both"), ([("nothing", 0.0)], None)):
        [images] = comfy.run(with_loras(*chain), "2")
        assert torch.equal(images, expected(adapter))
        assert not model.adapters
    assert not torch.equal(expected("ink"), expected("both"))
    asked = "What is in this image?"
    [answers] = comfy.run(with_loras(*both, node_4=dict(question=asked, max_new_tokens=6)), "4")
    content = [{"type": "image", "image": expected("both")[0].numpy()}, {"type": "text", "text": asked}]
    by_name = {
        name: by_hand.chat([{"role": "user", "content": content}], max_new_tokens=6, adapter=name).strip()
        for name in ("both", None)
    }
    assert answers[0] == by_name["both"] != by_name[None]


def test_cancel_leaves_no_lora_loaded(comfy: Comfy, adapted: tuple[JanusFlow, JanusFlow]) -> None:
    model, _ = adapted
    flow = with_loras(("ink", 1.0))
    for number, after in (("2", 2), ("4", 4)):  # in a drawing; in an answer
        comfy.progress.clear()
        comfy.interrupt = after
        with pytest.raises(InterruptProcessingException):
            comfy.run(flow, number)
        assert not model.adapters
    assert len(comfy.run(with_loras(("ink", 1.0), ("gold", 1.0)), "2")[0]) == 2  # of a larger rank: in new room


def test_a_lora_that_is_none_is_refused_where_it_is_named(comfy: Comfy, adapted: tuple[JanusFlow, JanusFlow]) -> None:
    write_adapter(comfy.models / "loras" / "wide", replace(adapted[0].config.language, hidden_size=512), rank=2)
    for lora, said in (
        ("", "adapter: expected a folder or a hub id, got ''"),
        ("theirs", "theirs: no such folder"),
        ("wide", r"lora_A.weight: expected \[2, 256\]"),
    ):
        with pytest.raises(CheckpointError, match=said):
            comfy.run(with_loras((lora, 1.0)), "11")


def test_a_checkpoint_may_lie_among_the_models(comfy: Comfy) -> None:
    (comfy.models / "janusflow").mkdir(parents=True)
    (comfy.models / "janusflow" / "mine").symlink_to(builtin_folder(), target_is_directory=True)
    [mine] = comfy.run(workflow(node_1=dict(checkpoint="mine", quantization="int8", dtype="bfloat16")), "1")
    assert (mine.model.name, mine.model.quantization) == (str(comfy.models / "janusflow" / "mine"), "int8")
    [half] = comfy.run(workflow(node_1=dict(dtype="float16", vae=str(builtin_folder() / "vae"))), "1")
    assert half.model.runner.vae_policy.matrix == torch.float32
    for missing in ("", "theirs"):
        with pytest.raises(FlashJanusError):
            comfy.run(workflow(node_1=dict(checkpoint=missing)), "1")


def test_what_is_wrong_is_said_by_the_model(comfy: Comfy) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        comfy.run(workflow(node_2=dict(prompt=" ")), "2")
