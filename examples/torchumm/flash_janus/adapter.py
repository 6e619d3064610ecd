"""JanusFlow as a backbone of TorchUMM, on FlashJanus. It reads the settings of TorchUMM's own `janus_flow`, whose
configuration files therefore work for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.sampling.options import SAMPLING, TokenOptions
from flashjanus.sampling.values import integer
from PIL import Image

MODEL = ("model_path", "vae_path", "device", "torch_dtype", "quantization")
NOT_NEEDED = ("janus_root", "use_cache")
"""Settings of `janus_flow` that change nothing here: the official code is not used, and answers always have a cache."""


class FlashJanusBackbone:
    """backbone_cfg: model_path (folder, hub id or "shapes"), vae_path, torch_dtype, device, quantization; seed, of the
    noise of all images drawn since loading (42); generation_cfg and understanding_cfg, the defaults of requests."""

    name = "flash_janus"

    def __init__(self) -> None:
        self.model: JanusFlow | None = None
        self.generation_cfg: dict[str, Any] = {"num_inference_steps": 30, "cfg_weight": 2.0, "parallel_size": 1}
        self.understanding_cfg: dict[str, Any] = {"max_new_tokens": 5120, "do_sample": False}
        self.generator = torch.Generator()

    def load(self, cfg: Mapping[str, Any]) -> None:
        known = {*MODEL, *NOT_NEEDED, "seed", "generation_cfg", "understanding_cfg"}
        _refuse_unknown("backbone_cfg", cfg, known)
        self.generation_cfg.update(cfg.get("generation_cfg") or {})
        self.understanding_cfg.update(cfg.get("understanding_cfg") or {})
        given = {name: cfg[name] for name in MODEL if cfg.get(name) is not None}
        names = {"vae_path": "vae", "torch_dtype": "dtype"}
        source = given.pop("model_path", "deepseek-ai/JanusFlow-1.3B")
        self.model = JanusFlow.from_pretrained(
            source, **{names.get(name, name): value for name, value in given.items()}
        )
        self.generator.manual_seed(integer("seed", cfg.get("seed", 42), 0, 2**63 - 1))

    def generation(
        self, prompt: str, output_path: str | None = None, generation_cfg: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """parallel_size images of a prompt: image, images, and the paths under which they were saved.

        generation_cfg: parallel_size; num_inference_steps; cfg_weight, or guidance_scale; img_size, to which images are
        scaled; seed, of this request alone; and the options of JanusFlow's flow, such as preset. Raises InputError.
        """
        config = {**self.generation_cfg, **(generation_cfg or {})}
        known = {*SAMPLING, *NOT_NEEDED, "cfg_weight", "parallel_size", "img_size", "seed"}
        _refuse_unknown("generation_cfg", config, known)
        generator = self.generator
        if config.get("seed") is not None:
            generator = torch.Generator().manual_seed(integer("seed", config["seed"], 0, 2**63 - 1))
        flow = {name: config[name] for name in SAMPLING if name in config}
        flow.setdefault("guidance_scale", config["cfg_weight"])
        images: list[Image.Image] = self._loaded.generate_image(
            prompt, num_images_per_prompt=config["parallel_size"], generator=generator, **flow
        ).images
        if config.get("img_size") is not None:
            side = integer("img_size", config["img_size"], 1, 8192)
            images = [
                image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)
                for image in images
            ]
        return {"image": images[0], "images": images, "saved_paths": _save(images, output_path)}

    def understanding(
        self,
        prompt: str | None = None,
        images: Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        understanding_cfg: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer to a question about images, of which there may be several or none.

        understanding_cfg: options of JanusFlow.chat. Raises InputError, NotImplementedError for videos.
        """
        if videos:
            raise NotImplementedError(f"videos: JanusFlow sees images alone, got {len(videos)} videos")
        if not prompt and not images:
            raise InputError("prompt, images: expected one of them at least, got neither")
        config = {**self.understanding_cfg, **(understanding_cfg or {})}
        options = {name: value for name, value in config.items() if name not in NOT_NEEDED}
        _refuse_unknown("understanding_cfg", options, set(TokenOptions.__dataclass_fields__))
        content = [{"type": "image", "image": Path(image).expanduser()} for image in images or ()]
        text = {"type": "text", "text": prompt or "Describe the image."}
        return {"text": self._loaded.chat([{"role": "user", "content": [*content, text]}], **options)}

    @property
    def _loaded(self) -> JanusFlow:
        if self.model is None:
            self.load({})
        assert self.model is not None
        return self.model


def _refuse_unknown(what: str, given: Iterable[str], known: set[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"{what}: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")


def _save(images: Sequence[Image.Image], output_path: str | None) -> list[str]:
    """One image under that path, several as NAME_0, NAME_1, ...; each is there whole or not at all, as runs that go on
    look for files."""
    if not output_path:
        return []
    path = Path(output_path).expanduser()
    suffix = path.suffix or ".png"
    path.parent.mkdir(parents=True, exist_ok=True)
    stems = [path.stem] if len(images) == 1 else [f"{path.stem}_{k}" for k in range(len(images))]
    saved = []
    for image, stem in zip(images, stems, strict=True):
        partial = path.with_name(f".{secrets.token_hex(8)}{suffix}")
        try:
            image.save(partial)
            os.replace(partial, path.with_name(stem + suffix))
        finally:
            partial.unlink(missing_ok=True)
        saved.append(str(path.with_name(stem + suffix)))
    return saved
