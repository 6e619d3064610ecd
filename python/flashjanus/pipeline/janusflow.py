"""The public class: one model that draws images from prompts and answers questions about images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from typing_extensions import Self

from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint import Checkpoint, JanusFlowConfig
from flashjanus.engine.runtime.isolation import callers_state
from flashjanus.errors import ConfigError, InputError

from . import answers, flow, options, presets, text
from . import best_of as choosing
from .entry import entry
from .images import ImageProcessor, load_image, to_pil
from .prompts import encode_chat, encode_generation_prompt
from .tensor_model import FLOATS, TensorModel
from .tokenizer import Tokenizer

ROWS_AT_ONCE = 8
"""Images drawn together; more are drawn in several batches of this size, which bounds the memory of their caches."""
Callback = Callable[["JanusFlow", int, float, dict[str, Any]], dict[str, Any]]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ImageOutput:
    """images: a list of PIL images, or an array or tensor of the output type asked for. seeds: one per image.

    timings: seconds spent on `prompt`, `flow`, `decode`, with best_of on `judge`, and in `total`. scores: with best_of,
    one per image, 0 to 1.
    """

    images: Any
    seeds: list[int]
    timings: dict[str, float] = field(default_factory=dict)
    scores: list[float] | None = None


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
    ) -> Self:
        """A model from "shapes" (built in), a folder in the official layout, or a hub id.

        vae: folder or hub id of a diffusers AutoencoderKL; default: the checkpoint's own `vae` folder, or the one that
        the published model names. dtype: "auto", "float32", "bfloat16", "float16"; vae_dtype: the same, "auto" follows
        dtype. quantization: "int8", the language model's linears on 8-bit weights and activations (few rows
        without AMX, and CPUs without VNNI: weights alone); "fp8", on GPUs of compute capability 8.9 or later: the same
        in float8_e4m3fn; "int4", on CPUs with AMX: as "int8", but up to four answers at once are decoded on 4-bit
        weights of the layers; None: as the checkpoint is stored.
        numerics: "exact", or "official" for the official bfloat16 loop's rounding. implementations: by op name the
        implementation that is to serve, or several, the preferred first. On a GPU, cuda_graphs: replay one captured
        graph per plan instead of launching kernel by kernel; buckets: the sizes that plans are made for, by "rows",
        "prompt_tokens", "steps", "new_tokens" (see pipeline/buckets.py). Raises CheckpointError, ConfigError,
        DeviceError, InputError, OutOfMemoryError, PlanError.
        """
        folder = builtin_folder(str(source)) if source in NAMES else source
        checkpoint = Checkpoint.open(folder, vae=vae, revision=revision)
        files = checkpoint.text_files
        tokenizer = None
        if "tokenizer.json" in files:
            extra = [files.get(f"{n}.json") for n in ("tokenizer_config", "processor_config", "special_tokens_map")]
            tokenizer = Tokenizer.from_files(files["tokenizer.json"], *extra)
            _check_fits(tokenizer, checkpoint.config)
        image_size = checkpoint.config.understanding.image_size
        vae_files = checkpoint.vae
        return cls._build(
            checkpoint.config,
            checkpoint.weights,
            None if vae_files is None else (vae_files.config, vae_files.weights),
            tokenizer,
            ImageProcessor.from_file(files.get("preprocessor_config.json"), image_size),
            str(source),
            options.Choices(device, dtype, vae_dtype, numerics, implementations, cuda_graphs, buckets, quantization),
        )

    @entry
    def generate_image(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
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
        judge: choosing.Judge | None = None,
    ) -> ImageOutput:
        """Images of a prompt or of several, `num_images_per_prompt` each, in order.

        num_inference_steps: 1 to 1000 (30). guidance_scale: 0 to 1000 (2); 1 runs without the unconditional branch.
        seed: image i is drawn from seed + i (with numerics="official" all images of a prompt come from one draw, as
        officially). output_type: "pil"; "np" (B, H, W, 3) and "pt" (B, 3, H, W) in [0, 1]; "latent".
        callback_on_step_end(model, step, t, {"latents": z}) -> dict, as in diffusers: latents changed in place or
        returned are used. It is called after every evaluation of the network, at its t in [0, 1000), and sees at most
        ROWS_AT_ONCE images; for more, the steps start again.

        preset: "exact", the official sampling, whose values stand in brackets; "balanced"; "fast" (see presets.py).
        Options that are given win over it. solver: "euler"; "ab2", of second order at one evaluation a step (euler).
        timestep_shift s, 0.01 to 100 (1): sigma = 1 - t becomes s sigma / (1 + (s - 1) sigma). guidance_interval (low,
        high) of t in [0, 1] (0, 1): no guidance outside. guidance_rescale, 0 to 1 (0): draws the guided velocity
        towards the conditional one's standard deviation. uncond_every n (1): every n-th evaluation with guidance
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
        begun = time.perf_counter()
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence) or not prompts:
            raise InputError(f"prompt: expected a string or a list of strings, got {prompt!r:.80}")
        images = options.integer("num_images_per_prompt", num_images_per_prompt, 1, 10_000)
        sampler = presets.sampler(
            preset,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            solver=solver,
            timestep_shift=timestep_shift,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            uncond_every=uncond_every,
            step_cache=step_cache,
        )
        options.choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        total = len(prompts) * images
        first = options.first_seed(seed, total)
        if output_type != "latent":
            self._need_vae()
        if best_of is not None or accept_above is not None:
            if output_type == "latent":
                raise InputError("output_type: expected 'pil', 'np' or 'pt', as best_of judges pictures, got 'latent'")
            draw = partial(
                self.generate_image,
                **asdict(sampler),
                output_type="latent",
                callback_on_step_end=callback_on_step_end,
            )
            best, spent = choosing.choose(
                self, self._need_tokenizer(), draw, prompts, images, best_of, accept_above, judge, seed
            )
            pictures = _of_type(torch.stack([one.image for one in best]), output_type)
            return ImageOutput(pictures, [one.seed for one in best], spent, [one.score for one in best])
        ids = [encode_generation_prompt(p, self._need_tokenizer(), self._prompt_room() + 1) for p in prompts]
        seeds, noise = self._noise(len(prompts), images, first)
        requests = [flow.FlowRequest(tuple(ids[i // images][:-1]), sampler, noise[i]) for i in range(total)]
        encoded = time.perf_counter()

        def on_step(k: int, z: torch.Tensor) -> torch.Tensor | None:
            assert callback_on_step_end is not None
            with callers_state():
                returned = callback_on_step_end(self, k, 1000.0 * sampler.schedule.times[k], {"latents": z})
            if not isinstance(returned, Mapping):
                raise InputError(f"callback_on_step_end: expected it to return a dict, got {returned!r:.80}")
            # z itself counts too: it may have been changed in place
            return options.tensor("latents", returned.get("latents", z), z.shape, FLOATS)

        parts = [requests[i : i + ROWS_AT_ONCE] for i in range(0, total, ROWS_AT_ONCE)]
        watched = None if callback_on_step_end is None else on_step
        latents = torch.cat([flow.generate(self.runner, part, watched) for part in parts])
        self.runner.synchronize()
        flowed = time.perf_counter()
        result: Any = latents
        if output_type != "latent":
            result = _of_type(self.decode_latents(latents), output_type)
        self.runner.synchronize()
        done = time.perf_counter()
        timings = {"prompt": encoded - begun, "flow": flowed - encoded, "decode": done - flowed, "total": done - begun}
        return ImageOutput(result, seeds, timings)

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
        stop: str | Sequence[str] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stream: bool = False,
    ) -> str | list[str] | Iterator[str]:
        """The answer to a conversation, or to each of several (a list of conversations, run as one batch).

        messages: [{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]}, ...],
        any number of images and turns; what an image may be says `images.load_image`, and which parts there are
        `prompts.encode_chat`. At most max_new_tokens, fewer where the model's context ends. do_sample: as temperature
        (0 is greedy), top_p and top_k (0 or -1 are all tokens) say. repetition_penalty applies to generated tokens.
        stop, or stop_strings: a string or several; an answer ends before the first of them. stream: an iterator of text
        pieces, for one conversation. Raises InputError.
        """
        tokenizer = self._need_tokenizer()
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise InputError(
                f"messages: expected a list of {{'role', 'content'}}, or of such lists, got {messages!r:.80}"
            )
        batched = not isinstance(messages[0], Mapping)
        conversations: list[Messages] = list(messages) if batched else [messages]  # type: ignore[arg-type, list-item]
        if stream and batched:
            raise InputError("stream: expected one conversation, got a list of them; stream them one by one")
        first = options.first_seed(seed, len(conversations))
        stops = answers.stop_strings(stop=stop, stop_strings=stop_strings)
        limit = self.config.language.max_position_embeddings
        requests = []
        for i, conversation in enumerate(conversations):
            sampling = options.Sampling.of(do_sample, temperature, top_p, top_k, repetition_penalty, first + i)
            encoded = encode_chat(conversation, tokenizer, limit)
            pixels = [self.processor.preprocess(load_image(image)) for image in encoded.images]
            stacked = torch.stack(pixels) if pixels else None
            requests.append(text.TextRequest(tuple(encoded.ids), stacked, sampling))
        own = [answers.Answer(tokenizer, stops) for _ in requests]
        room = self._room(requests, max_new_tokens)
        steps = text.generate(
            self.runner, requests, self._image_tokens(None), room, tokenizer.eos_id, lambda row: own[row].ended
        )
        if stream:
            return answers.streamed(steps, own[0])
        texts = answers.written(steps, own)
        return texts if batched else texts[0]

    def _noise(self, prompts: int, images: int, first: int) -> tuple[list[int], torch.Tensor]:
        """Seeds and noise (B, c, H, W) of every image."""
        size = self.config.latent_size
        shape = (self.config.gen_encoder.input_channels, size, size)
        if self.numerics == "official":
            draws = [(first + i, images) for i in range(prompts)]
        else:
            draws = [(first + i, 1) for i in range(prompts * images)]
        dtype = self.runner.policy.latents
        noise = [torch.randn((n, *shape), generator=torch.Generator().manual_seed(s), dtype=dtype) for s, n in draws]
        return [s for s, n in draws for _ in range(n)], torch.cat(noise).float()

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} has no tokenizer.json, which text needs: add it to the checkpoint's folder, or use "
                "sample_latents and generate_ids, which take token ids"
            )
        return self.tokenizer


def _of_type(decoded: torch.Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W), about [-1, 1], as "pil", "np" or "pt"."""
    if output_type == "pil":
        return [to_pil(image) for image in decoded]
    shown = (decoded.clamp(-1, 1) + 1) / 2
    return shown if output_type == "pt" else shown.permute(0, 2, 3, 1).cpu().numpy()


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
