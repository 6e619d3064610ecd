"""JanusFlow in TorchUMM: a stand-in of its pipeline calls the backbone as the benchmarks do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from PIL import Image, ImageDraw

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchumm" / "flash_janus"
CONFIG = dict(model_path="shapes", janus_root="/nowhere", torch_dtype="float32", device="cpu", vae_path=None, seed=42)
FAST = dict(generation_cfg=dict(num_inference_steps=2))


class InferencePipeline:
    """TorchUMM's, as far as a request goes through it: factories by name, `load`, and two tasks by keyword."""

    registry: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self, backbone_name: str, backbone_cfg: dict[str, Any]) -> None:
        self.backbone = self.registry[backbone_name]()
        self.backbone.load(backbone_cfg)

    def run(self, payload: dict[str, Any]) -> Any:
        params = dict(payload.get("params", {}))
        if payload["task"] == "generation":
            return self.backbone.generation(
                prompt=payload["prompt"], output_path=payload.get("output_path"), generation_cfg=params
            )
        return self.backbone.understanding(
            prompt=payload.get("prompt"),
            images=list(payload.get("images", [])),
            videos=list(payload.get("videos", [])),
            understanding_cfg=params,
        )


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    """Copied where its README says, it is a package below umm.backbones."""
    name = "umm_backbones_flash_janus"
    spec = importlib.util.spec_from_file_location(
        name, EXAMPLE / "__init__.py", submodule_search_locations=[str(EXAMPLE)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    InferencePipeline.registry["flash_janus"] = module.FlashJanusBackbone


def opened(**config: Any) -> InferencePipeline:
    return InferencePipeline("flash_janus", {**CONFIG, **FAST, **config})


def drawing(prompt: str = "a red circle", **payload: Any) -> dict[str, Any]:
    return {"backbone": "flash_janus", "task": "generation", "prompt": prompt, **payload}


def test_images_are_drawn_and_saved(tmp_path: Path) -> None:
    pipeline = opened()
    one = pipeline.run(drawing(output_path=str(tmp_path / "new" / "00000.png")))
    assert one["saved_paths"] == [str(tmp_path / "new" / "00000.png")]
    with Image.open(one["saved_paths"][0]) as saved:
        assert saved.tobytes() == one["image"].tobytes()
    params = dict(parallel_size=3, img_size=32, preset="fast", cfg_weight=3.0)
    several = pipeline.run(drawing(params=params, output_path=str(tmp_path / "x")))
    assert [Path(path).name for path in several["saved_paths"]] == ["x_0.png", "x_1.png", "x_2.png"]
    assert {image.size for image in several["images"]} == {(32, 32)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "x_0.png", "x_1.png", "x_2.png"]
    assert pipeline.run(drawing())["saved_paths"] == []


def test_the_seed_fixes_all_images_since_loading() -> None:
    first, again = opened(), opened()
    images = [[pipeline.run(drawing())["image"].tobytes() for _ in range(2)] for pipeline in (first, again)]
    assert images[0] == images[1]
    assert images[0][0] != images[0][1]
    of_request = [first.run(drawing(params=dict(seed=7)))["image"].tobytes() for _ in range(2)]
    assert of_request[0] == of_request[1]
    assert first.run(drawing())["image"].tobytes() == again.run(drawing())["image"].tobytes()


def test_questions_are_answered(tmp_path: Path) -> None:
    pipeline = opened(understanding_cfg=dict(max_new_tokens=8, use_cache=True))
    for color in ("red", "blue"):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=color)
        picture.save(tmp_path / f"{color}.png")
    paths = [str(tmp_path / "red.png"), str(tmp_path / "blue.png")]
    asked = dict(task="understanding", prompt="What color is the circle?", images=paths[:1])
    assert "red" in pipeline.run(asked)["text"]
    parts = [*({"type": "image", "image": path} for path in paths), {"type": "text", "text": "Describe the image."}]
    expected = pipeline.backbone.model.chat([{"role": "user", "content": parts}], max_new_tokens=4)
    assert pipeline.run(dict(task="understanding", images=paths, params=dict(max_new_tokens=4)))["text"] == expected


def test_it_loads_when_it_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    shapes = JanusFlow.from_pretrained("shapes")
    monkeypatch.setattr(JanusFlow, "from_pretrained", lambda *source, **options: loaded.append(source) or shapes)
    backbone = InferencePipeline.registry["flash_janus"]()
    backbone.generation("a red circle", generation_cfg=dict(num_inference_steps=1))
    assert loaded == [("deepseek-ai/JanusFlow-1.3B",)]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (drawing(params=dict(cfg=3)), "generation_cfg: expected some of .*, got cfg"),
        (drawing(params=dict(img_size=0)), "img_size: expected an integer"),
        (drawing(params=dict(cfg_weight="a")), "guidance_scale: expected a finite number"),
        (drawing(prompt=""), "the prompt is empty"),
        (dict(task="understanding"), "prompt, images: expected one of them"),
        (dict(task="understanding", prompt="?", params=dict(beams=2)), "understanding_cfg: expected some of .* beams"),
        (dict(task="understanding", prompt="?", images=["no.png"]), "no.png"),
    ],
)
def test_what_a_request_refuses(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened().run(payload)


def test_what_it_cannot_do() -> None:
    with pytest.raises(NotImplementedError, match="videos: JanusFlow sees images alone"):
        opened().run(dict(task="understanding", prompt="?", videos=["a.mp4"]))
    with pytest.raises(InputError, match=r"backbone_cfg: expected some of .*, got model"):
        opened(model="shapes")
    assert not hasattr(opened().backbone, "editing")
