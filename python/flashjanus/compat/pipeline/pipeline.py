"""`JanusFlowPipeline`: JanusFlow as a pipeline of diffusers, for code that was written for one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from flashjanus.api.janusflow import ROWS_AT_ONCE, JanusFlow
from flashjanus.api.outputs import ImageOutput, joined, of_type
from flashjanus.compat.pipeline import absent
from flashjanus.compat.pipeline.lora import LoraPipeline
from flashjanus.compat.pipeline.parts import PipelineImageProcessor, PipelineVae, chat_tokenizer
from flashjanus.compat.pipeline.source import Source, destination, one_device, same_device
from flashjanus.compat.pipeline.steps import TENSORS, Interrupted, Step, StepEnd, Steps, tensors_of
from flashjanus.compat.processing.tokenizer import ChatTokenizer
from flashjanus.compat.said import warn
from flashjanus.errors import AbsentError, InputError
from flashjanus.execution.loading import Choices
from flashjanus.sampling import checks
from flashjanus.sampling.options import ImageOptions
from flashjanus.sampling.presets import sampler_of


class JanusFlowPipelineOutput(dict[str, Any]):
    """images: a list of PIL images, or an array or tensor if that was the output type. As in diffusers they are an
    attribute, an entry by name, and the first entry by position. timings: the seconds of each stage."""

    def __init__(self, images: Any, timings: Mapping[str, float]) -> None:
        super().__init__(images=images)
        self.timings = dict(timings)

    @property
    def images(self) -> Any:
        return self["images"]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


class JanusFlowPipeline(LoraPipeline, Steps):
    """JanusFlow with the interface of diffusers' text-to-image pipelines. Make one with `from_pretrained`, or from a
    loaded `JanusFlow`. As in diffusers, a pipeline serves one call at a time; `from_pipe` makes further pipelines,
    which share the model and may be used from several threads.

    A method of diffusers that has no effect here warns once and gives the reason. An argument that cannot be honored
    raises InputError, and an attribute or a method that does not exist here raises AbsentError; both say what to do
    instead.
    """

    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSORS)

    def __init__(self, model: JanusFlow) -> None:
        if not isinstance(model, JanusFlow):
            raise InputError(f"model: expected a JanusFlow, got {type(model).__name__}; see from_pretrained")
        super().__init__()
        self._model = model
        self._source: Source | None = None
        self._said: set[str] = set()
        self._tokenizer: ChatTokenizer | None = None
        self._progress_bar_config: Mapping[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        vae: Any = None,
        vae_dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        numerics: str = "exact",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        implementations: Mapping[str, str | Sequence[str]] | None = None,
        cuda_graphs: bool = True,
        buckets: Mapping[str, Sequence[int]] | None = None,
        **others: Any,
    ) -> Self:
        """A pipeline from "shapes" (built in), a folder in the official layout, or a hub id.

        torch_dtype (or dtype, its newer name): None chooses as `JanusFlow` does. With float16 the VAE runs in float32
        unless vae_dtype says otherwise, because its decoder overflows in float16. device_map: the device to which the
        weights are loaded, "cpu" if None; loading there at once is faster than loading and calling `to`. vae: another
        VAE, given as a folder, a file, a hub id, or an AutoencoderKL of diffusers. cache_dir, token, local_files_only,
        and force_download: options of a download from the hub. The other options and the errors are those of
        `JanusFlow.from_pretrained`.
        """
        asked = {name: value for name, value in others.items() if name not in absent.PROMISED}
        absent.refuse(asked, absent.LOADING, cls.from_pretrained)
        if None not in (torch_dtype, dtype) and torch_dtype != dtype:
            raise InputError(
                f"torch_dtype, dtype: expected one of these two names for one argument, got {torch_dtype} and {dtype}"
            )
        choices = Choices(
            one_device(device_map),
            dtype if torch_dtype is None else torch_dtype,
            vae_dtype,
            numerics,
            implementations,
            cuda_graphs,
            buckets,
            quantization,
        )
        fetch = dict(cache_dir=cache_dir, token=token, local_files_only=local_files_only, force_download=force_download)
        hub = {name: value for name, value in fetch.items() if value is not None}
        source = Source(pretrained_model_name_or_path, vae, revision, hub, choices)
        pipe = cls(source.load())
        pipe._source = source
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: JanusFlowPipeline) -> Self:
        """Another pipeline on the same model."""
        pipe = cls(pipeline.model)
        pipe._source = pipeline._source
        return pipe

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        max_sequence_length: int | None = None,
        preset: str = "exact",
        solver: str | None = None,
        timestep_shift: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        uncond_every: int | None = None,
        step_cache: int | Sequence[float] | None = None,
        **others: Any,
    ) -> JanusFlowPipelineOutput | tuple[Any]:
        """Draw `num_images_per_prompt` images of each prompt, in order.

        num_inference_steps: 1 to 1000 (default 30). guidance_scale: up to 1000 (default 2); 1 or less turns guidance
        off, as in diffusers. height, width: the model's own size, if given. generator: a single one draws the noise of
        all images at once, and a list has one for each image; a generator on the CPU gives the same noise on every
        device. Without one, the noise comes from torch's default generator of the device, which torch.manual_seed
        seeds. The noise is drawn in float32 whatever the dtype of the weights, except with numerics="official" in
        bfloat16, where the official code draws it in bfloat16. latents: the noise (B, c, H, W) itself. output_type:
        "pil"; "np", (B, H, W, 3) in [0, 1]; "pt", (B, 3, H, W) in [0, 1]; or "latent", the result of the flow, not
        divided by the VAE's scaling factor. max_sequence_length: a prompt of more tokens is refused.

        callback_on_step_end(pipe, step, t, tensors) -> dict is called after every step. t is a scalar tensor that rises
        from 0, the noise, toward 1000. tensors has what callback_on_step_end_tensor_inputs lists: "latents", which may
        be changed in place or returned, and "pred_original_sample", the image that the latents are heading for. Setting
        `pipe._interrupt` ends the call after that step, and the images are decoded from the latents as they are. More
        than 8 images are drawn 8 at a time: the callback sees the steps of each batch, and no batch begins after an
        interrupt. preset and the options after it: as in `JanusFlow.generate_image`. Raises InputError.
        """
        flow = dict[str, Any](
            preset=preset,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            solver=solver,
            timestep_shift=timestep_shift,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            uncond_every=uncond_every,
            step_cache=step_cache,
        )
        absent.refuse(others, absent.ARGUMENTS, self.__call__)
        prompts = self._prompts(prompt, max_sequence_length)
        self._check_size(height, width)
        wanted = tensors_of(callback_on_step_end, callback_on_step_end_tensor_inputs)
        images = 1 if num_images_per_prompt is None else num_images_per_prompt
        asked = ImageOptions(num_images_per_prompt=images, output_type=output_type or "pil", **flow).checked()
        if asked.guidance_scale is not None and asked.guidance_scale < 1:
            asked = replace(asked, guidance_scale=1.0)
            flow["guidance_scale"] = 1.0
        sampler = sampler_of(asked)
        if generator is None and latents is None:
            generator = _default_generator(self.device)

        self._guidance, self._evaluations = sampler.guidance_scale, len(sampler.schedule)
        batches = -(-len(prompts) * asked.num_images_per_prompt // ROWS_AT_ONCE)
        with self.progress_bar(total=batches * self.num_timesteps) as bar:
            step = None
            if callback_on_step_end is not None or not bar.disable:
                step = Step(self, bar, callback_on_step_end, wanted)
            self._interrupted, self._between = False, step is not None
            try:
                output = self._drawn(
                    prompts,
                    num_images_per_prompt=asked.num_images_per_prompt,
                    generator=generator,
                    latents=latents,
                    output_type=asked.output_type,
                    callback_on_step_end=step,
                    adapter=self._drawing,
                    **flow,
                )
            finally:
                self._between = True
        if not return_dict:
            return (output.images,)
        return JanusFlowPipelineOutput(output.images, output.timings)

    def _drawn(self, prompts: Sequence[str], **options: Any) -> ImageOutput:
        done: list[ImageOutput] = []
        try:
            for output in self._model.stream_images(prompts, **options):
                done.append(output)
        except Interrupted as interrupted:
            images: Any = interrupted.latents
            if options["output_type"] != "latent":
                images = of_type(self._model.decode_latents(images), options["output_type"])
            done.append(ImageOutput(images, None))
        return joined(done)

    def _prompts(self, prompt: Any, longest: int | None) -> Sequence[str]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(one, str) for one in prompts):
            raise InputError(f"prompt: expected a string or a list of strings, got {prompt!r:.80}")
        if longest is not None:
            room = checks.integer("max_sequence_length", longest, 1, 2**31 - 1)
            for one in prompts:
                tokens = 0 if self._model.tokenizer is None else len(self._model.tokenizer.encode_text(one))
                if tokens > room:
                    raise InputError(
                        f"max_sequence_length: expected prompts of at most {room} tokens, got {tokens} in {one!r:.40}; "
                        "prompts are not truncated here: shorten it, or leave max_sequence_length out"
                    )
        return prompts

    def _check_size(self, height: Any, width: Any) -> None:
        side = self._model.config.latent_size * self.vae_scale_factor
        for name, value in (("height", height), ("width", width)):
            if value not in (None, side):
                raise InputError(
                    f"{name}: expected {side} or None, because this model draws only {side}x{side}, got {value!r}; "
                    "resize the images afterward"
                )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move this pipeline to another device or dtype: `to(device)`, `to(dtype)`, `to(device, dtype)`, or with
        keywords. The model is loaded again from its source, unless it has that device and dtype already. Raises
        DeviceError, InputError, and the errors of loading; the pipeline then stays unchanged."""
        device, dtype = destination(args, kwargs)
        device = None if device is None or same_device(device, self.device) else device
        dtype = None if dtype == self.dtype else dtype
        if device is None and dtype is None:
            return self
        if self._source is None:
            raise InputError(
                f"to: expected {self.device} and {self.dtype}, where the model of this pipeline was loaded, got "
                f"{device or dtype}; only a pipeline from JanusFlowPipeline.from_pretrained can load it again"
            )
        choices = self._source.choices
        choices = replace(choices, device=device or self.device, dtype=dtype or choices.dtype)
        there = replace(self._source, choices=choices)
        model = there.load()
        self._reload_adapters(model)
        self._model, self._source = model, there
        return self

    @property
    def model(self) -> JanusFlow:
        """The underlying `JanusFlow`."""
        return self._model

    @property
    def components(self) -> dict[str, Any]:
        """The arguments for another pipeline: `JanusFlowPipeline(**pipe.components)`."""
        return {"model": self._model}

    @property
    def tokenizer(self) -> ChatTokenizer | None:
        """The model's tokenizer with transformers' names, or None if the model has none."""
        if self._tokenizer is None and self._model.tokenizer is not None:
            self._tokenizer = chat_tokenizer(self._model.tokenizer, self._model.config)
        return self._tokenizer

    @property
    def vae(self) -> PipelineVae | None:
        """The decoder of latents, or None if the model has no VAE."""
        config = self._model.runner.vae_config
        return None if config is None else PipelineVae(self._model, config, partial(_NoOp, self))

    @property
    def image_processor(self) -> PipelineImageProcessor:
        """The object that converts the images of `vae` to the output types."""
        return PipelineImageProcessor()

    @property
    def device(self) -> torch.device:
        return self._model.device

    _execution_device = device

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    @property
    def name_or_path(self) -> str:
        return self._model.name

    @property
    def vae_scale_factor(self) -> int:
        """The number of pixels along a side for each latent."""
        vae = self._model.runner.vae_config
        return 8 if vae is None else vae.scale

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set tqdm's options for the progress bar of a call; `disable=True` turns it off. By default a bar is shown on
        a terminal only."""
        self._progress_bar_config = config

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A tqdm bar over `iterable`, or of `total` steps."""
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise InputError("progress_bar: expected total or iterable, got neither")
        return tqdm(iterable, total=total, **{"disable": None, **self._progress_bar_config})

    def __getattr__(self, name: str) -> Any:
        if name in absent.NO_OPS:
            return _NoOp(self, name)
        reason = absent.PARTS.get(name)
        raise AbsentError(f"JanusFlowPipeline has no {name}" + (f": {reason}" if reason else ""))

    def __setattr__(self, name: str, value: Any) -> None:
        reason = absent.PARTS.get(name) or absent.FIXED.get(name)
        if reason and value is not None:
            raise InputError(f"{name}: cannot be replaced, got {type(value).__name__}; {reason}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"JanusFlowPipeline({self.name_or_path!r}, {self.device}, {self.dtype})"


class _NoOp:
    """A method without effect, which gives the reason once for each pipeline."""

    def __init__(self, pipe: JanusFlowPipeline, name: str) -> None:
        self._pipe, self._name = pipe, name

    def __call__(self, *args: object, **kwargs: object) -> None:
        reason = (absent.NO_OPS.get(self._name) or absent.ONE_BY_ONE).format(device=self._pipe.device)
        if reason not in self._pipe._said:
            self._pipe._said.add(reason)
            warn(f"{self._name} changes nothing: {reason}", UserWarning)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
