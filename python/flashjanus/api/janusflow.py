"""The public class: one model that draws images from prompts and answers questions about images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from typing_extensions import Self

from flashjanus.api import drawing
from flashjanus.api.drawing import ROWS_AT_ONCE
from flashjanus.api.outputs import ImageOutput, joined
from flashjanus.api.tensor_model import TensorModel
from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint import Checkpoint, JanusFlowConfig
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import ConfigError, InputError
from flashjanus.execution import latent_map, loading, text
from flashjanus.inputs.answers import Answer
from flashjanus.inputs.images import ImageProcessor, load_image
from flashjanus.inputs.prompts import encode_chat
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.sampling.options import Callback, ImageOptions, Judge, TokenOptions
from flashjanus.sampling.tokens import samplings
from flashjanus.scheduling import calls
from flashjanus.scheduling.requests import ImageJob, TextJob

__all__ = ["ROWS_AT_ONCE", "ImageOutput", "JanusFlow"]
Messages = Sequence[Mapping[str, Any]]


class JanusFlow(TensorModel):
    """JanusFlow on the static-graph runtime. Make one with `from_pretrained` or `from_state_dict`."""

    @classmethod
    @entry
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] = "shapes",
        *,
        vae: str | os.PathLike[str] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        vae_dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        numerics: str = "exact",
        implementations: Mapping[str, str | Sequence[str]] | None = None,
        cuda_graphs: bool = True,
        buckets: Mapping[str, Sequence[int]] | None = None,
        revision: str | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> Self:
        """A model from "shapes" (built in), a folder in the official layout, or a hub id.

        vae: folder or hub id of a diffusers AutoencoderKL, or one file of its weights, as sdxl_vae.safetensors;
        default: the checkpoint's own `vae` folder, or the one that the published model names. dtype: "auto", "float32",
        "bfloat16", "float16"; vae_dtype: the same, "auto" follows dtype. quantization: "int8", the language model's
        linears on 8-bit weights and activations (few rows without AMX, and CPUs without VNNI: weights alone); "fp8", on
        GPUs of compute capability 8.9 or later: the same in float8_e4m3fn; "int4", on CPUs with AMX: as "int8", but up
        to four answers at once are decoded on 4-bit weights of the layers; None: as the checkpoint is stored.
        numerics: "exact", or "official" for the official bfloat16 loop's rounding. implementations: by op name the
        implementation that is to serve, or several, the preferred first. On a GPU, cuda_graphs: replay one captured
        graph per plan instead of launching kernel by kernel; buckets: the sizes that plans are made for, by "rows",
        "prompt_tokens", "steps", "new_tokens" (see execution/buckets.py). adapters: LoRA adapters by the names that
        requests give, as `load_adapter` takes them. Raises CheckpointError, ConfigError, DeviceError, InputError,
        OutOfMemoryError, PlanError.
        """
        folder = builtin_folder(str(source)) if source in NAMES else source
        checkpoint = Checkpoint.open(folder, vae=vae, revision=revision)
        choices = loading.Choices(
            device, dtype, vae_dtype, numerics, implementations, cuda_graphs, buckets, quantization
        )
        model = cls._of(checkpoint, str(source), choices)
        if adapters:
            model.load_adapters(adapters)
        return model

    @classmethod
    @entry
    def _of(cls, checkpoint: Checkpoint, name: str, choices: loading.Choices) -> Self:
        """`from_pretrained` of a checkpoint that is open; name: what the model is called."""
        files = checkpoint.text_files
        tokenizer = None
        if "tokenizer.json" in files:
            extra = [files.get(f"{n}.json") for n in ("tokenizer_config", "processor_config", "special_tokens_map")]
            tokenizer = Tokenizer.from_files(files["tokenizer.json"], *extra)
            _check_fits(tokenizer, checkpoint.config)
        image_size = checkpoint.config.understanding.image_size
        vae_files = checkpoint.vae
        model = cls._build(
            checkpoint.config,
            checkpoint.weights,
            None if vae_files is None else (vae_files.config, vae_files.weights),
            tokenizer,
            ImageProcessor.from_file(files.get("preprocessor_config.json"), image_size),
            name,
            choices,
        )
        if vae_files is not None:
            channels = vae_files.config.latent_channels
            kept = latent_map.LatentMap.read(vae_files.folder / latent_map.FILE, channels)
            model.runner.previews = latent_map.Previews(kept, channels)
        return model

    @entry
    def generate_image(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        adapter: str | Sequence[str | None] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        preset: str = "exact",
        solver: str | None = None,
        timestep_shift: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        uncond_every: int | None = None,
        step_cache: int | Sequence[float] | None = None,
        best_of: int | None = None,
        accept_above: float | None = None,
        judge: Judge | None = None,
    ) -> ImageOutput:
        """Images of a prompt or of several, `num_images_per_prompt` each, in order.

        num_inference_steps: 1 to 1000 (30). guidance_scale: 0 to 1000 (2); 1 runs without the unconditional branch.
        seed: image i is drawn from seed + i (with numerics="official" all images of a prompt come from one draw, as
        officially); or a list, one for each image. Instead of it, as in diffusers: generator, which draws the noise of
        all images at once, or a list, one for each image; or latents, the noise (B, c, H, W) itself. adapter: the name
        of a loaded one (`load_adapter`) that draws them, or a list, one or None for each prompt. output_type:
        "pil"; "np" (B, H, W, 3) and "pt" (B, 3, H, W) in [0, 1]; "latent".
        callback_on_step_end(model, step, t, {"latents": z, "pred_original_sample": z1}) -> dict, as in diffusers:
        latents changed in place or returned are used; z1 is where they are heading, of which `preview` makes pictures.
        It is called after every evaluation of the network, at its t in [0, 1000), and sees at most ROWS_AT_ONCE images;
        for more, the steps start again.

        preset: "exact", the official sampling, whose values stand in brackets; "balanced"; "fast" (see options.py).
        Options that are given win over it. solver: "euler"; "ab2", of second order at one evaluation a step (euler).
        timestep_shift s, 0.01 to 100 (1): sigma = 1 - t becomes s sigma / (1 + (s - 1) sigma). guidance_interval (low,
        high) of t in [0, 1] (0, 1): no guidance outside. guidance_rescale, 0 to 1 (0): draws the guided velocity
        toward the conditional one's standard deviation. uncond_every n (1): every n-th evaluation with guidance
        computes the unconditional velocity, which serves those between as well. step_cache n (1): the language model
        runs in the first two evaluations and in every n-th; or times of t, of which the first is 0: in the first
        evaluation at or after each. In the others what it adds to its input is extrapolated from its last two runs.

        best_of: draw so many images per prompt, with the seeds that they would have if all were asked for, and return
        the num_images_per_prompt best, the best first. The model itself is the judge: `judge` is a question with
        "{prompt}" in it, whose P(yes) / (P(yes) + P(no)) is the score, or a function from a prompt to checks (question,
        answer, other answers), whose product is. Default: "Does this image show: {prompt}?"; for the built-in model the
        questions that it was trained on. accept_above: draw no more images of a prompt once enough of them score at
        least that (0 to 1). Raises InputError.
        """
        return joined(self._drawn(prompt, ImageOptions.of(locals())))

    @entry
    def stream_images(self, prompt: str | Sequence[str], **options: Any) -> Iterator[ImageOutput]:
        """As `generate_image`, whose options these are, but batch by batch: outputs of at most ROWS_AT_ONCE images, in
        order, each drawn when it is asked for; with best_of those of a prompt when all its candidates are judged.
        Memory does not grow with their number. What is wrong with the options is said at once: InputError."""
        return self._drawn(prompt, ImageOptions(**options))

    def _drawn(self, prompt: str | Sequence[str], options: ImageOptions) -> Iterator[ImageOutput]:
        if options.output_type != "latent":
            self._need_vae()
        return drawing.stream(self, self._need_tokenizer(), self._prompt_room() + 1, prompt, options)

    @entry
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        *,
        max_new_tokens: int = 512,
        do_sample: bool = False,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        top_k: int | None = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        adapter: str | Sequence[str | None] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stream: bool = False,
    ) -> str | list[str] | Iterator[str]:
        """The answer to a conversation, or to each of several (a list of conversations, run as one batch).

        messages: [{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]}, ...],
        any number of images and turns; what an image may be says `images.load_image`, and which parts there are
        `prompts.encode_chat`. At most max_new_tokens, fewer where the model's context ends. do_sample: as temperature
        (0 is greedy), top_p and top_k (0 or -1 are all tokens) say; conversation i samples from seed + i.
        repetition_penalty applies to generated tokens. adapter: the name of a loaded one (`load_adapter`) that answers,
        or a list, one or None for each conversation. stop, or stop_strings: a string or several; an answer ends
        before the first of them. stream: an iterator of text pieces, for one conversation. Raises InputError.
        """
        options = TokenOptions.of(locals()).checked()
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise InputError(
                f"messages: expected a list of {{'role', 'content'}}, or of such lists, got {messages!r:.80}"
            )
        batched = not isinstance(messages[0], Mapping)
        conversations: list[Messages] = list(messages) if batched else [messages]  # type: ignore[arg-type, list-item]
        if stream and batched:
            raise InputError("stream: expected one conversation, got a list of them; stream them one by one")
        jobs = self._text_jobs(conversations, options)
        pieces = ((row, event.text) for row, event in calls.write(self.shared, jobs) if event.text)
        if stream:
            return (piece for _, piece in pieces)
        texts = [""] * len(jobs)
        for row, piece in pieces:
            texts[row] += piece
        return texts if batched else texts[0]

    @entry
    def image_job(
        self, prompt: str, *, preview_every: int = 0, full_previews: bool = False, **options: Any
    ) -> ImageJob:
        """A prompt's images as a job for `scheduler()`: options as in `generate_image`, but for best_of, judge and the
        callback; previews as in `ImageJob`. Without a seed it draws a new one. Raises InputError."""
        asked = ImageOptions(**options)
        if asked.output_type != "latent":
            self._need_vae()
        room = self._prompt_room() + 1
        return drawing.job(self, self._need_tokenizer(), room, prompt, asked, preview_every, full_previews)

    @entry
    def text_job(self, messages: Messages, **options: Any) -> TextJob:
        """The answer to a conversation as a job for `scheduler()`: options as in `chat`. Raises InputError."""
        return self._text_jobs([messages], TokenOptions(**options).checked())[0]

    def _text_jobs(self, conversations: Sequence[Messages], options: TokenOptions) -> list[TextJob]:
        tokenizer, limit = self._need_tokenizer(), self.config.language.max_position_embeddings
        requests, count = [], len(conversations)
        settings = samplings(options, count), self._adapters(options.adapter, count, "conversation")
        for conversation, sampling, adapter in zip(conversations, *settings, strict=True):
            encoded = encode_chat(conversation, tokenizer, limit)
            pixels = [self.processor.preprocess(load_image(image)) for image in encoded.images]
            stacked = torch.stack(pixels) if pixels else None
            requests.append(text.TextRequest(tuple(encoded.ids), stacked, sampling, adapter))
        common = dict[str, Any](eos=tokenizer.eos_id, image_tokens=self._image_tokens(None))
        return [
            TextJob(request=request, room=room, answer=Answer(tokenizer, options.stops), **common)
            for request, room in zip(requests, self._room(requests, options.max_new_tokens), strict=True)
        ]

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} has no tokenizer.json, which text needs: add it to the checkpoint's folder, or use "
                "sample_latents and generate_ids, which take token ids"
            )
        return self.tokenizer


def _check_fits(tokenizer: Tokenizer, config: JanusFlowConfig) -> None:
    """ConfigError unless every id has an embedding and an image block has as many tags as the encoder has features."""
    if tokenizer.vocab_size > config.language.vocab_size:
        raise ConfigError(
            f"tokenizer.json: expected at most language_config.vocab_size = {config.language.vocab_size} tokens, got "
            f"{tokenizer.vocab_size} with its tags; the file belongs to another model"
        )
    if tokenizer.num_image_tokens != config.num_understanding_tokens:
        raise ConfigError(
            f"processor_config.json: expected num_image_tokens {config.num_understanding_tokens}, the encoder's number "
            f"of features, got {tokenizer.num_image_tokens} (576 where it is not set)"
        )
