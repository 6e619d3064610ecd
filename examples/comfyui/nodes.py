"""Four nodes: load JanusFlow, load a LoRA for it, draw a prompt, ask about images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyAPISync, ComfyExtension, io, ui
from flashjanus import JanusFlow
from flashjanus.api.adapters import MAX_WEIGHT
from flashjanus.checkpoint.adapters import WEIGHTS, AdapterFiles
from flashjanus.inputs.images import to_pil
from flashjanus.sampling.options import MAX_IMAGES, PRESETS
from flashjanus.sampling.values import MAX_COUNT, MAX_GUIDANCE, MAX_STEPS
from typing_extensions import override

MODEL = io.Custom("FLASHJANUS_MODEL")
CATEGORY = "FlashJanus"
FOLDER = "janusflow"
"""Below ComfyUI's folder of models: checkpoints that are named without a path."""
MAX_SEED = 2**53 - 1
"""The largest that the browser, whose numbers are floats, passes on as it is."""
MODEL_INPUT = MODEL.Input("model")
SEED_INPUT = io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True)


@dataclass(frozen=True)
class Loaded:
    """What a loader passes on: the model, and with which LoRAs the nodes after it use it, each with its strength."""

    model: JanusFlow
    loras: tuple[tuple[AdapterFiles, float], ...] = ()

    @contextmanager
    def adapter(self) -> Iterator[str | None]:
        """The name under which the model has the sum of the LoRAs, for the length of this block."""
        if not self.loras:
            yield None
            return
        (files, strength), *others = self.loras
        if others or strength != 1:
            files = AdapterFiles.combined(" + ".join(one.source for one, _ in self.loras), self.loras)
        if self.model.runner.adapters.rank < files.rank:
            self.model.reserve_adapters(slots=1, rank=files.rank)
        name = self.model.runner.load_adapter(files, CATEGORY).name
        try:
            yield name
        finally:
            self.model.unload_adapter(name)


def _schema(
    node: str, title: str, description: str, inputs: list[io.Input], output: io.Output, **more: Any
) -> io.Schema:
    return io.Schema(
        node_id=f"FlashJanus{node}",
        display_name=title,
        category=CATEGORY,
        description=description,
        inputs=inputs,
        outputs=[output],
        **more,
    )


class LoadJanusFlow(io.ComfyNode):
    """A checkpoint, loaded once for all nodes that use it."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Load",
            "Load JanusFlow",
            "Loads JanusFlow, which draws images and answers questions about them.",
            [
                io.String.Input(
                    "checkpoint",
                    default="deepseek-ai/JanusFlow-1.3B",
                    tooltip=f"A folder in models/{FOLDER}, a path, a hub id, or shapes, which is built in.",
                ),
                io.Combo.Input("device", options=["auto", "cpu", "cuda"], default="auto", tooltip="auto is the CPU."),
                io.Combo.Input("dtype", options=["auto", "bfloat16", "float16", "float32"], default="auto"),
                io.Combo.Input(
                    "quantization",
                    options=["none", "int8", "fp8", "int4"],
                    default="none",
                    tooltip="int8 runs everywhere, fp8 on GPUs since Ada and Hopper, int4 on CPUs.",
                ),
                io.String.Input(
                    "vae", default="", optional=True, tooltip="Folder or hub id of another VAE than the checkpoint's."
                ),
            ],
            MODEL.Output(display_name="model"),
        )

    @classmethod
    @override
    def execute(
        cls, checkpoint: str, device: str, dtype: str, quantization: str, vae: str | None = None
    ) -> io.NodeOutput:
        model = JanusFlow.from_pretrained(
            _source(checkpoint, [Path(folder_paths.models_dir, FOLDER)]),
            vae=vae or None,
            device=device,
            dtype=dtype,
            vae_dtype="float32" if dtype == "float16" else "auto",  # whose decoder overflows in float16
            quantization=None if quantization == "none" else quantization,
        )
        return io.NodeOutput(Loaded(model))


class LoadJanusFlowLora(io.ComfyNode):
    """A LoRA that the nodes after this one use; several of these nodes in a row add theirs up."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return _schema(
            "LoadLora",
            "Load JanusFlow LoRA",
            "Applies a LoRA to JanusFlow, for images and for answers. Several of these nodes in a row add theirs up.",
            [
                MODEL_INPUT,
                io.String.Input(
                    "lora",
                    default="",
                    tooltip="A folder in models/loras, a path, or a hub id, with what PEFT saves: adapter_config.json "
                    f"and {WEIGHTS}.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-MAX_WEIGHT, max=MAX_WEIGHT, step=0.01, tooltip="0 leaves it out."
                ),
            ],
            MODEL.Output(display_name="model"),
        )

    @classmethod
    @override
    def execute(cls, model: Loaded, lora: str, strength: float) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model)
        named = str(Path(lora).parent) if Path(lora).name == WEIGHTS else lora
        source = _source(named, folder_paths.get_folder_paths("loras"))
        files = AdapterFiles.read(source, model.model.runner.config.language)
        return io.NodeOutput(Loaded(model.model, (*model.loras, (files, strength))))


class DrawJanusFlow(io.ComfyNode):
    """A prompt's images; progress and previews are shown after each step, after which it can be interrupted."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return _schema(
            "TextToImage",
            "JanusFlow Text to Image",
            "Draws images of a prompt. Image i of a batch is what seed + i draws alone.",
            [
                MODEL_INPUT,
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, placeholder="what to draw"),
                SEED_INPUT,
                io.Int.Input("steps", default=30, min=1, max=MAX_STEPS),
                io.Float.Input("guidance", default=2.0, min=1.0, max=MAX_GUIDANCE, step=0.1, tooltip="1 is none."),
                io.Int.Input("batch_size", default=1, min=1, max=MAX_IMAGES),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="exact",
                    tooltip="balanced and fast reuse work between steps; use about 20 and 16 steps with them.",
                ),
            ],
            io.Image.Output(display_name="images"),
        )

    @classmethod
    @override
    def execute(
        cls, model: Loaded, prompt: str, seed: int, steps: int, guidance: float, batch_size: int, preset: str
    ) -> io.NodeOutput:
        progress, done = ComfyAPISync().execution, 0

        def shown(of: JanusFlow, step: int, t: float, state: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            throw_exception_if_processing_interrupted()
            done += len(state["latents"])
            progress.set_progress(done, batch_size * steps, preview_image=_preview(of, state["pred_original_sample"]))
            return state

        with model.adapter() as adapter:
            images = model.model.generate_image(
                prompt,
                num_images_per_prompt=batch_size,
                num_inference_steps=steps,
                guidance_scale=guidance,
                preset=preset,
                seed=seed,
                output_type="pt",
                adapter=adapter,
                callback_on_step_end=shown,
            ).images
        return io.NodeOutput(images.permute(0, 2, 3, 1).float().contiguous().cpu())


class AskJanusFlow(io.ComfyNode):
    """A question about each image of a batch, or one about all of them together."""

    @classmethod
    @override
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Ask",
            "JanusFlow Ask about Image",
            "Answers a question about images. The answer is shown, and is an output.",
            [
                MODEL_INPUT,
                io.Image.Input("image"),
                io.String.Input("question", multiline=True, default="What is in this image?"),
                io.Int.Input("max_new_tokens", default=256, min=1, max=MAX_COUNT),
                io.Float.Input(
                    "temperature", default=0.0, min=0.0, max=5.0, step=0.05, tooltip="0 takes the likeliest token."
                ),
                SEED_INPUT,
                io.Boolean.Input(
                    "together", default=False, tooltip="One question about all images, instead of one about each."
                ),
            ],
            io.String.Output(display_name="answers", is_output_list=True),
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(
        cls,
        model: Loaded,
        image: torch.Tensor,
        question: str,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        together: bool,
    ) -> io.NodeOutput:
        pictures = [picture.clamp(0, 1).cpu().numpy() for picture in image]  # what scales images may leave this range
        asked = [pictures] if together else [[picture] for picture in pictures]
        progress, answers = ComfyAPISync().execution, []
        with model.adapter() as adapter:
            for k, several in enumerate(asked):
                content = [*({"type": "image", "image": one} for one in several), {"type": "text", "text": question}]
                stream = model.model.chat(
                    [{"role": "user", "content": content}],
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature,
                    seed=seed + k,
                    adapter=adapter,
                    stream=True,
                )
                answer = ""
                with closing(stream):
                    for piece in stream:
                        throw_exception_if_processing_interrupted()
                        answer += piece
                answers.append(answer.strip())
                progress.set_progress(k + 1, len(asked))
        return io.NodeOutput(answers, ui=ui.PreviewText("\n\n".join(answers)))


def _source(name: str, folders: Iterable[str | Path]) -> str | Path:
    """The folder of that name among models; the name itself, a path or a hub id, if there is none."""
    return next((path for folder in folders if name and (path := Path(folder, name)).is_dir()), name)


def _preview(model: JanusFlow, latents: torch.Tensor) -> Any:
    """The first image as it is so far; none as long as that takes the VAE, which costs as much as steps do."""
    if model.runner.previews.map is None:
        return None
    return to_pil(model.preview(latents[:1])[0] * 2 - 1)


class FlashJanusExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadJanusFlow, LoadJanusFlowLora, DrawJanusFlow, AskJanusFlow]


async def comfy_entrypoint() -> FlashJanusExtension:
    return FlashJanusExtension()
