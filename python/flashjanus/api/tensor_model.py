"""The tensor-level interface: token ids, latents, pixels and logits, for embedding and for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from typing_extensions import Self

from flashjanus.api.adapters import AdaptableModel
from flashjanus.api.ids import image_tokens, token_ids
from flashjanus.checkpoint import (
    JanusFlowConfig,
    StateDictSource,
    TensorSource,
    VaeConfig,
    vae_layout,
    weight_layout,
)
from flashjanus.checkpoint.names import with_tied_head
from flashjanus.engine.device.capabilities import default_dtype, resolve_device
from flashjanus.engine.plan import Plan
from flashjanus.engine.runtime.cuda import open_gpu
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import InputError
from flashjanus.execution import flow, loading, pictures, text, warming
from flashjanus.execution.buckets import EXACT, PADDED, Buckets
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.runner import Runner
from flashjanus.inputs.images import ImageProcessor
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.model import Policy
from flashjanus.sampling import checks, presets
from flashjanus.sampling.options import SAMPLING, TokenOptions
from flashjanus.sampling.tokens import Sampling, samplings
from flashjanus.scheduling import calls
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import TextJob
from flashjanus.scheduling.scheduler import Scheduler
from flashjanus.scheduling.shared import SharedScheduler


class TensorModel(AdaptableModel):
    """JanusFlow on tensors. `JanusFlow` adds prompts, images and conversations.

    The attributes name, device, dtype, quantization and numerics hold the resolved options. why gives the reasons for
    device and dtype in words.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None,
        processor: ImageProcessor,
        name: str,
        why: str,
    ) -> None:
        self.runner, self.tokenizer, self.processor = runner, tokenizer, processor
        self.name, self.why = name, why
        self.config, self.device = runner.config, runner.device
        self.dtype, self.numerics = runner.policy.matrix, runner.policy.numerics
        self.quantization = runner.policy.quantization
        self.shared = SharedScheduler(partial(Scheduler, runner))

    def __copy__(self) -> Self:
        """Return a shallow copy that shares weights and scheduler with this object."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @classmethod
    @entry
    def from_state_dict(
        cls,
        config: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        vae_config: Mapping[str, Any] | None = None,
        vae_state_dict: Mapping[str, torch.Tensor] | None = None,
        tokenizer: Tokenizer | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        vae_dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        numerics: str = "exact",
        implementations: Mapping[str, str | Sequence[str]] | None = None,
        cuda_graphs: bool = True,
        buckets: Mapping[str, Sequence[int]] | None = None,
    ) -> Self:
        """Build a model from config dicts and tensors in the official layout (for the VAE, that of diffusers).

        The options are those of `JanusFlow.from_pretrained`.
        """
        weights = StateDictSource(state_dict, "state_dict")
        parsed = JanusFlowConfig.from_dict(with_tied_head(dict(config), weights.names()))
        if (vae_config is None) != (vae_state_dict is None):
            raise InputError("vae_config, vae_state_dict: expected both or neither, got one of them")
        vae: tuple[VaeConfig, TensorSource] | None = None
        if vae_config is not None and vae_state_dict is not None:
            vae = VaeConfig.from_dict(dict(vae_config)), StateDictSource(vae_state_dict, "vae_state_dict")
        return cls._build(
            parsed,
            weights,
            vae,
            tokenizer,
            ImageProcessor.from_file(None, parsed.understanding.image_size),
            "state_dict",
            loading.Choices(device, dtype, vae_dtype, numerics, implementations, cuda_graphs, buckets, quantization),
        )

    @classmethod
    def _build(
        cls,
        config: JanusFlowConfig,
        weights: TensorSource,
        vae: tuple[VaeConfig, TensorSource] | None,
        tokenizer: Tokenizer | None,
        processor: ImageProcessor,
        name: str,
        choices: loading.Choices,
        placed: tuple[loading.Placed | None, loading.Placed | None] = (None, None),
    ) -> Self:
        numerics = choices.numerics
        device, why_device = resolve_device(choices.device)
        automatic, why_dtype = default_dtype(device)
        dtype = checks.dtype(choices.dtype, automatic)
        vae_dtype = checks.dtype(choices.vae_dtype, dtype)
        buckets = Buckets.of(choices.buckets, EXACT if device.type == "cpu" else PADDED)
        checks.choice("numerics", numerics, ("exact", "official"))
        if numerics == "official" and dtype is torch.float16:
            raise InputError("numerics: expected dtype bfloat16 or float32 with 'official', got float16")
        if vae is not None:
            vae[0].check_fits(config)
            if vae_dtype is torch.float16:
                raise InputError(
                    "vae_dtype: the VAE's decoder overflows in float16; expected 'bfloat16' or 'float32' "
                    "(it follows dtype unless you give it)"
                )
        implementations = choices.implementations or {}
        policy = loading.policy(device, dtype, numerics, choices.quantization, config.quantization, implementations)
        vae_policy = Policy.of(vae_dtype, numerics)
        gpu = None if device.type == "cpu" else open_gpu(device, choices.cuda_graphs)

        runner = Runner(
            config,
            policy,
            loading.load(weight_layout(config), weights, policy, device, gpu, name, placed[0]),
            device,
            vae_config=None if vae is None else vae[0],
            vae_policy=vae_policy,
            vae_weights=None
            if vae is None
            else loading.load(vae_layout(vae[0]), vae[1], vae_policy, device, gpu, name, placed[1]),
            implementations=implementations,
            buckets=buckets,
            gpu=gpu,
        )
        why = f"{device} ({why_device}), {dtype} ({'asked for' if choices.dtype != 'auto' else why_dtype})"
        return cls(runner, tokenizer, processor, name, why)

    @entry
    def sample_latents(
        self,
        input_ids: Sequence[Sequence[int] | torch.Tensor] | torch.Tensor,
        noise: torch.Tensor,
        guidance_scale: float | Sequence[float] | None = None,
        num_inference_steps: int | Sequence[int] | None = None,
        trace: bool = False,
        *,
        solver: str | Sequence[str] | None = None,
        timestep_shift: float | Sequence[float] | None = None,
        guidance_interval: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
        guidance_rescale: float | Sequence[float] | None = None,
        uncond_every: int | Sequence[int] | None = None,
        step_cache: int | Sequence[float] | Sequence[int | Sequence[float]] | None = None,
        preset: str | Sequence[str] = "exact",
        adapter: str | Sequence[str | None] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, list[dict[str, Any]]]:
        """Integrate noise (B, c, H, W) at t = 0 to latents (B, c, H, W), float32, at t = 1. Rows are independent.

        input_ids: B prompts with the trailing generation tag, which is dropped. The sampling options and adapter are
        those of `JanusFlow.generate_image`, each as one value or one per row. trace: also return a list with one dict
        per evaluation of the network: `z` before the evaluation, `v_cond`, and `v_uncond`, which is NaN in rows that
        do not compute it there and None if no row ever does. Raises InputError.
        """
        asked = {name: value for name, value in locals().items() if name in SAMPLING}
        if isinstance(input_ids, torch.Tensor):
            input_ids = list(checks.tensor("input_ids", input_ids, (None, None), checks.INTEGERS))
        if not isinstance(input_ids, Sequence) or not input_ids:
            raise InputError(
                f"input_ids: expected a list of at least 1 prompt, each a list of ids, got {input_ids!r:.80}"
            )
        size, channels = self.config.latent_size, self.config.gen_encoder.input_channels
        z = checks.tensor("noise", noise, (len(input_ids), channels, size, size), checks.FLOATS).float()
        samplers = presets.samplers(len(z), **asked)
        rows = zip(input_ids, samplers, z, self._adapters(adapter, len(z)), strict=True)
        requests = [flow.FlowRequest(self._prompt(ids, row), *its) for row, (ids, *its) in enumerate(rows)]
        steps_taken: list[dict[str, Any]] | None = [] if trace else None
        z1 = calls.draw(self.shared, requests, trace=steps_taken).result
        return z1 if steps_taken is None else (z1, steps_taken)

    @entry
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (B, c, H, W) to images (B, 3, H s, W s), float32, about [-1, 1]; s is the VAE's scale."""
        vae = self._need_vae()
        latents = checks.tensor("latents", latents, (None, vae.latent_channels, None, None), checks.FLOATS)
        return pictures.decode(self.runner, latents)

    @entry
    def preview(self, latents: torch.Tensor, full: bool = False) -> torch.Tensor:
        """Turn latents (B, c, H, W) into preview images (B, 3, h, w) in [0, 1], float32. Raises InputError.

        Previews are for the callback_on_step_end of `JanusFlow.generate_image`. They have the size of the latents and
        come from a linear map at almost no cost. With `full`, the VAE decodes them at the size and the cost of a
        picture. The VAE is also used if the checkpoint has no linear map, until one has been fitted to the first
        pictures that the model draws.
        """
        vae = self._need_vae()
        latents = checks.tensor("latents", latents, (None, vae.latent_channels, None, None), checks.FLOATS)
        return pictures.preview(self.runner, latents, full)

    @entry
    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode normalized pixels (B, 3, S, S) to features (B, N, D), float32, aligned to the language model."""
        size = self.config.understanding.image_size
        pixels = checks.tensor("pixel_values", pixel_values, (None, 3, size, size), checks.FLOATS)
        return text.encode_images(self.runner, pixels).float()

    @entry
    def next_token_logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_tokens: text.ImageTokens | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> torch.Tensor:
        """Logits (B, V), float32, of the token after each row.

        input_ids, attention_mask: (B, T). Masked tokens are ignored and take no position. pixel_values:
        (B, n, 3, S, S); row b uses one of its images for each image block in its ids. image_tokens: the ids that mark
        image blocks; needed if the model has no tokenizer. adapter: as in `generate_ids`. Raises InputError.
        """
        requests = self._requests(input_ids, attention_mask, pixel_values, image_tokens, [Sampling()], adapter)
        return calls.next_logits(self.shared, requests, self._image_tokens(image_tokens))

    @entry
    def generate_ids(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        max_new_tokens: int = 512,
        eos_token_id: int | None = None,
        *,
        do_sample: bool = False,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        top_k: int | None = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        adapter: str | Sequence[str | None] | None = None,
        image_tokens: text.ImageTokens | None = None,
    ) -> torch.Tensor:
        """Generate new tokens (B, T), int64, with T at most max_new_tokens.

        A row ends at eos_token_id (default: the tokenizer's) or at the end of the model's context, and is padded with
        eos_token_id, or with 0 if there is none. Row b samples from seed + b. adapter: the name of a loaded adapter,
        or a list with a name or None per row. Raises InputError.
        """
        options = TokenOptions.of(locals()).checked()
        rows = len(checks.tensor("input_ids", input_ids, (None, None), checks.INTEGERS))
        eos = None if self.tokenizer is None else self.tokenizer.eos_id
        if eos_token_id is not None:
            eos = checks.integer("eos_token_id", eos_token_id, 0, self.config.language.vocab_size - 1)
        sampling = samplings(options, rows)
        requests = self._requests(input_ids, attention_mask, pixel_values, image_tokens, sampling, options.adapter)
        tokens, rooms = self._image_tokens(image_tokens), self._room(requests, options.max_new_tokens)
        jobs = [
            TextJob(request=request, room=room, eos=eos, image_tokens=tokens)
            for request, room in zip(requests, rooms, strict=True)
        ]
        ids = [torch.tensor(found) for found in calls.results(self.shared, jobs)]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=eos or 0)

    @entry
    def warm_up(
        self,
        images: Sequence[int] = (1,),
        conversations: Sequence[int] = (1,),
        prompt_tokens: Sequence[int] = (64,),
        steps: int = 30,
        new_tokens: int = 512,
        preset: str = "exact",
    ) -> None:
        """Allocate these buckets before the first request needs them. On a GPU, also capture their graphs.

        images, conversations: how many run at once; an empty sequence allocates nothing for that kind. prompt_tokens:
        the length of the longest prompt among them. Images are drawn with guidance, `preset`, and at most `steps`
        evaluations. The largest buckets come first, because a smaller graph fits into the temporaries of a larger one.
        If rows are padded, buckets of fewer rows are allocated, too, since rows move there as others end. Raises
        InputError and OutOfMemoryError.
        """
        warming.warm_up(self.runner, images, conversations, prompt_tokens, steps, new_tokens, preset)

    @entry
    def scheduler(self, limits: Limits | None = None) -> Scheduler:
        """Create a scheduler on this model's weights, for a server or another program that drives it.

        It has its own rows and prefixes. The methods of this object share another scheduler, which they drive
        themselves.
        """
        return Scheduler(self.runner, limits)

    @property
    def prefixes(self) -> PrefixStore:
        """The cached prefixes of this object's calls, with counts of how often they were reused."""
        return self.shared.scheduler.prefixes

    @property
    def buckets(self) -> Buckets:
        """The sizes that plans are made for."""
        return self.runner.buckets

    @entry
    def plan(self, program: str, rows: int = 1, prompt_tokens: int = 64, steps: int = 30) -> Plan:
        """The plan that a program uses for `rows` rows, `prompt_tokens` prompt tokens, and `steps` steps or new tokens.

        In flow programs, the rows are guided. Raises InputError.
        """
        checks.integer("rows", rows, 1, 1024)
        checks.integer("prompt_tokens", prompt_tokens, 1, self.config.language.max_position_embeddings)
        checks.integer("steps", steps, 1, checks.MAX_STEPS)
        sizes = self.runner.sizes(rows, prompt_tokens, steps)
        if checks.choice("program", program, list(sizes)) == "decode_latents":
            self._need_vae()
        return self.runner.plan(program, **sizes[program])

    def _prompt_room(self) -> int:
        """Maximum tokens in a generation prompt. The time token and the image take the other positions."""
        return self.config.language.max_position_embeddings - 1 - self.config.num_image_tokens

    def _room(self, requests: Sequence[text.TextRequest], wanted: int) -> list[int]:
        """Maximum new tokens of each row: `wanted`, or what its context leaves. The last token is not fed back."""
        return [min(wanted, self.config.language.max_position_embeddings + 1 - len(r.ids)) for r in requests]

    def _prompt(self, ids: Sequence[int] | torch.Tensor, row: int) -> tuple[int, ...]:
        return token_ids(f"input_ids[{row}]", ids, 2, self._prompt_room() + 1, self.config.language.vocab_size)[:-1]

    def _requests(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_tokens: text.ImageTokens | None,
        sampling: Sequence[Sampling],
        adapter: str | Sequence[str | None] | None,
    ) -> list[text.TextRequest]:
        ids, language = checks.tensor("input_ids", input_ids, (None, None), checks.INTEGERS), self.config.language
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        mask = checks.tensor("attention_mask", mask, ids.shape, (*checks.INTEGERS, torch.bool)).bool()
        pixels, tokens = None, self._image_tokens(image_tokens)
        if pixel_values is not None:
            size = self.config.understanding.image_size
            pixels = checks.tensor("pixel_values", pixel_values, (len(ids), None, 3, size, size), checks.FLOATS)
            if tokens is None:
                raise InputError(
                    "image_tokens: expected the ids of image blocks, because this model has no tokenizer, got None"
                )
        requests, of_rows = [], self._adapters(adapter, len(ids))
        for row, kept in enumerate(mask):
            name = f"input_ids[{row}]" + ("" if attention_mask is None else ", where attention_mask is not 0")
            values = token_ids(name, ids[row][kept], 1, language.max_position_embeddings, language.vocab_size)
            images = 0 if tokens is None else values.count(tokens.start)
            have = 0 if pixels is None else pixels.shape[1]
            if images > have:
                said = f"expected {images} images for row {row}, whose ids have that many image blocks, got {have}"
                raise InputError(f"pixel_values: {said}")
            own = None if pixels is None or not images else pixels[row, :images]
            requests.append(text.TextRequest(values, own, sampling[row % len(sampling)], of_rows[row]))
        if pixels is not None and all(r.pixels is None for r in requests):
            raise InputError("pixel_values: expected image blocks in input_ids for these images, got none")
        return requests

    def _image_tokens(self, given: text.ImageTokens | None) -> text.ImageTokens | None:
        if given is not None:
            return image_tokens(given, self.config.language.vocab_size)
        if self.tokenizer is None:
            return None
        return text.ImageTokens(self.tokenizer.image_start_id, self.tokenizer.image_id)

    def _need_vae(self) -> VaeConfig:
        if self.runner.vae_config is None:
            raise InputError(
                f"{self.name} has no VAE, which decodes images: pass vae= or --vae (a folder, a file, or a hub id "
                "such as stabilityai/sdxl-vae), or ask for output_type='latent'"
            )
        return self.runner.vae_config
