"""The public class: a model that draws images from prompts and answers questions about images."""

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
    """JanusFlow on the static-graph runtime. Create it with `from_pretrained` or `from_state_dict`."""

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
        """Load a model: "shapes" (built in), a folder in the official layout, or a hub id.

        Args:
            source: Name of a built-in model, folder, or hub id.
            vae: Folder or hub id of a diffusers AutoencoderKL, or one file of its weights such as
                sdxl_vae.safetensors. Default: the subfolder `vae` of the checkpoint's folder, or stabilityai/sdxl-vae
                for the hub id of the published model; without either, images cannot be decoded.
            device: "auto" (the CPU), "cpu", or "cuda".
            dtype: "float32", "bfloat16", "float16", or "auto", which is bfloat16 if the device multiplies it
                as fast as float32, else float32.
            vae_dtype: The same for the VAE; "auto" follows dtype.
            quantization: "int8" runs the language model's linears with 8-bit weights and inputs (with 8-bit weights
                only for few rows without AMX, and on CPUs without VNNI). "fp8" does the same in float8_e4m3fn, on GPUs
                of compute capability 8.9 or later. "int4", on CPUs, is like "int8" but decodes up to four answers at
                once with 4-bit weights. None runs the checkpoint as it is stored.
            numerics: "exact", or "official" to round like the official bfloat16 loop.
            implementations: Maps the name of an op to the implementation that serves it, or to several in order of
                preference.
            cuda_graphs: On a GPU, replay one captured graph for each plan instead of launching each kernel on its own.
            buckets: On a GPU, the sizes that plans are made for: "rows", "prompt_tokens", "steps" and "new_tokens".
            revision: Branch, tag, or commit of a hub id.
            adapters: LoRA adapters to load, by the names that requests use (see `load_adapter`).

        Raises:
            CheckpointError: A file is missing or damaged, or a tensor does not fit.
            ConfigError: The configuration is not valid.
            DeviceError: The device cannot be used.
            InputError: An option is not valid.
            OutOfMemoryError: The device has too little memory.
            PlanError: An implementation does not exist.
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
        """`from_pretrained` for an open checkpoint. name: the name of the model."""
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
        """Draw `num_images_per_prompt` images of each prompt, in the order of the prompts.

        A sampling option that is None has the value of the preset. Its value in "exact" is given in parentheses.

        Args:
            prompt: One prompt, or a list.
            num_images_per_prompt: Images of each prompt.
            num_inference_steps: Number of solver steps, 1 to 1000 (30).
            guidance_scale: 0 to 1000 (2); 1 runs without the unconditional branch.
            seed: Image i is drawn from seed + i. A list gives one seed per image. With numerics="official", all images
                of a prompt come from one draw, as in the official code. None draws a new seed.
            generator: Draws the noise instead of a seed, as in diffusers. A list gives one generator per image.
            latents: The noise itself, (B, c, H, W), instead of a seed or a generator.
            adapter: Name of the loaded adapter to draw with (`load_adapter`). A list gives a name or None per prompt.
            output_type: "pil"; "np", (B, H, W, 3) in [0, 1]; "pt", (B, 3, H, W) in [0, 1]; or "latent".
            callback_on_step_end: Called after every evaluation of the network, as in diffusers:
                callback(model, step, t, {"latents": z, "pred_original_sample": z1}) -> dict, with t in [0, 1000). The
                model continues from latents that the callback returns or changes in place. z1 is the current
                prediction of the final latents; `preview` turns it into pictures. A call sees at most ROWS_AT_ONCE
                images; for further images, the steps start again.
            preset: "exact" (the official sampling), "balanced", or "fast". Given options take precedence.
            solver: "euler", or the second-order "ab2", which also needs one evaluation per step ("euler").
            timestep_shift: s, 0.01 to 100 (1): sigma = 1 - t becomes s sigma / (1 + (s - 1) sigma).
            guidance_interval: (low, high) in [0, 1]; guidance is applied only while t is between them (0, 1).
            guidance_rescale: 0 to 1 (0). Pulls the standard deviation of the guided velocity toward that of the
                conditional velocity.
            uncond_every: n (1). Every n-th evaluation with guidance computes the unconditional velocity; the
                evaluations between them reuse it.
            step_cache: An integer n (1) runs the language model in the first two evaluations and in every n-th. A list
                of times t that begins with 0 runs it in the first evaluation at or after each time. In all other
                evaluations, what the language model adds to its input is extrapolated from its last two runs.
            best_of: Draw this many candidates per prompt, with the seeds that they would have as images, and return the
                num_images_per_prompt best, the best first.
            accept_above: Stop drawing candidates of a prompt once enough of them have at least this score, 0 to 1.
            judge: How candidates are scored. Either a question that contains "{prompt}", whose score is
                P(yes) / (P(yes) + P(no)), or a function from a prompt to checks (question, answer, other answers),
                whose scores are multiplied. Default: "Does this image show: {prompt}?"; for the built-in model, the
                questions that it was trained on.

        Raises:
            InputError: A prompt or an option is not valid.
        """
        return joined(self._drawn(prompt, ImageOptions.of(locals())))

    @entry
    def stream_images(self, prompt: str | Sequence[str], **options: Any) -> Iterator[ImageOutput]:
        """Draw images like `generate_image`, with the same options, but yield them in batches.

        Each output has at most ROWS_AT_ONCE images, in order, and is drawn when the iterator is advanced. With best_of,
        a prompt's images come after all its candidates are judged. Memory does not grow with the number of images.
        Raises InputError for invalid options at the call, not during the iteration.
        """
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
        """Answer one conversation, or a list of conversations in one batch.

        Args:
            messages: [{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]},
                ...], with any number of turns and images. `images.load_image` documents the types of images, and
                `prompts.encode_chat` the types of parts.
            max_new_tokens: Maximum number of tokens in an answer. The answer also ends with the model's context.
            do_sample: Sample, with the next three options, instead of always taking the likeliest token.
            temperature: Sampling temperature. 0 is greedy; values above 1 flatten the distribution.
            top_p: Sample among the likeliest tokens whose probabilities add up to this value.
            top_k: Sample among this many of the likeliest tokens; 0 and -1 keep all tokens.
            repetition_penalty: Makes tokens that the answer already contains less likely; 1 turns this off.
            seed: Conversation i samples from seed + i.
            adapter: Name of the loaded adapter to answer with (`load_adapter`). A list gives a name or None per
                conversation.
            stop: One or several strings. An answer ends before the first of them that it reaches.
            stop_strings: Another name for `stop`; both may be given.
            stream: Return an iterator over pieces of the text. Only for a single conversation.

        Raises:
            InputError: A message or an option is not valid.
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
        """The images of one prompt as a job for `scheduler()`.

        The options are those of `generate_image` without best_of, accept_above, judge and the callback. `ImageJob`
        documents the previews. If no source of noise is given, a new seed is drawn. Raises InputError.
        """
        asked = ImageOptions(**options)
        if asked.output_type != "latent":
            self._need_vae()
        room = self._prompt_room() + 1
        return drawing.job(self, self._need_tokenizer(), room, prompt, asked, preview_every, full_previews)

    @entry
    def text_job(self, messages: Messages, **options: Any) -> TextJob:
        """The answer to a conversation as a job for `scheduler()`, with the options of `chat`. Raises InputError."""
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
                f"{self.name} has no tokenizer.json, without which it cannot read text: add it to the checkpoint's "
                "folder, or use sample_latents and generate_ids, which take token ids"
            )
        return self.tokenizer


def _check_fits(tokenizer: Tokenizer, config: JanusFlowConfig) -> None:
    """Raise ConfigError unless every id has an embedding and an image block has one tag per feature of the encoder."""
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
