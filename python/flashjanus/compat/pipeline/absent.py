"""Names that diffusers' pipelines have and JanusFlow does not support, each with what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from flashjanus.errors import InputError


def _table(*rows: tuple[str, str]) -> Mapping[str, str]:
    """Map each name to its reason. The names of a row share one reason."""
    return {name: reason for names, reason in rows for name in names.split()}


ARGUMENTS = _table(
    ("prompt_2 prompt_3", "there is one text encoder, the language model; put all words into prompt"),
    (
        "negative_prompt negative_prompt_2 negative_prompt_3",
        "the unconditional branch of JanusFlow sees no prompt, and was trained that way; describe in prompt what "
        "to draw, or change guidance_scale",
    ),
    (
        "prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds prompt_attention_mask "
        "negative_prompt_attention_mask prompt_embeds_mask negative_prompt_embeds_mask",
        "prompts are token ids here, not embeddings; pass prompt, or ids to pipe.model.sample_latents",
    ),
    (
        "image mask_image strength control_image padding_mask_crop",
        "JanusFlow draws from text alone; it was not trained to edit images",
    ),
    (
        "ip_adapter_image ip_adapter_image_embeds negative_ip_adapter_image negative_ip_adapter_image_embeds",
        "JanusFlow has no IP-Adapter",
    ),
    ("timesteps sigmas", "the times follow from num_inference_steps and timestep_shift"),
    ("mu", "timestep_shift moves the times"),
    ("true_cfg_scale", "guidance_scale sets the scale of classifier-free guidance"),
    ("eta", "the flow is integrated without noise, as with eta=0"),
    ("clip_skip", "there is no CLIP; the language model's last layer is used"),
    ("cross_attention_kwargs joint_attention_kwargs attention_kwargs", "attention takes no options"),
    (
        "skip_guidance_layers skip_layer_guidance_scale skip_layer_guidance_start skip_layer_guidance_stop "
        "pag_scale pag_adaptive_scale",
        "classifier-free guidance is the only kind here; see guidance_scale, guidance_interval and guidance_rescale",
    ),
    ("callback callback_steps", "callback_on_step_end is called after every step"),
    ("seed", "pass generator=torch.Generator().manual_seed(seed), or one generator for each image"),
    (
        "original_size target_size crops_coords_top_left negative_original_size negative_target_size "
        "negative_crops_coords_top_left",
        "JanusFlow is conditioned on the prompt alone, and draws one size",
    ),
    (
        "denoising_start denoising_end",
        "an image is drawn by one model; a callback may set pipe._interrupt to end early",
    ),
)
"""Arguments of a call."""

LOADING = _table(
    ("quantization_config", "pass quantization='int8', 'fp8' or 'int4'"),
    ("variant", "a checkpoint has one set of weights; torch_dtype sets the dtype in which they are loaded"),
    ("use_auth_token", "the argument is now called token"),
    ("resume_download proxies mirror", "download with `hf download`, and pass the folder"),
    ("scheduler", "the solver is an option of each call: solver, num_inference_steps, timestep_shift"),
    ("custom_pipeline custom_revision load_connected_pipeline", "this pipeline runs JanusFlow alone"),
    ("max_memory offload_folder offload_state_dict", "all weights are on one device"),
    ("use_onnx provider sess_options provider_options use_flashpack dduf_file", "weights are read from safetensors"),
    (
        "text_encoder text_encoder_2 text_encoder_3 transformer unet tokenizer tokenizer_2 tokenizer_3 image_encoder "
        "feature_extractor image_processor safety_checker",
        "JanusFlow is one model, loaded whole; from_pretrained takes its folder and its VAE's",
    ),
)
"""Arguments of from_pretrained."""

PROMISED = frozenset(
    {"use_safetensors", "low_cpu_mem_usage", "trust_remote_code", "requires_safety_checker", "disable_mmap"}
)
"""Arguments of from_pretrained that ask for what is true here anyway: only tensors are read, each of them once and
directly into its place; no code of a checkpoint runs; and there is no safety checker."""

PARTS = _table(
    ("unet transformer text_encoder text_encoder_2 text_encoder_3", "the language model and its encoder and decoder of "
     "latents are one plan, not modules; pipe.model is the model, and flashjanus.compat.janusflow has it as modules"),
    ("tokenizer_2 tokenizer_3", "there is one tokenizer, pipe.tokenizer"),
    ("scheduler", "the solver is an option of each call: solver, num_inference_steps, timestep_shift"),
    ("feature_extractor image_encoder", "output_type sets the type of the returned images"),
    ("safety_checker watermark", "images are returned as they were drawn"),
    ("config", "pipe.model.config is the model's config"),
    ("save_pretrained push_to_hub", "weights are packed for this machine when they are loaded: copy the checkpoint's "
     "folder; `flashjanus quantize` writes a quantized one"),
    ("cuda cpu half float bfloat16", "pipe.to(device) and pipe.to(dtype) move it"),
    ("eval train requires_grad_ parameters named_parameters modules state_dict", "a pipeline only runs inference"),
    ("upcast_vae", "from_pretrained(vae_dtype='float32') sets the dtype of the VAE"),
    ("numpy_to_pil", "output_type='pil' returns PIL images, and pipe.image_processor.postprocess makes them"),
    ("encode_prompt prepare_latents check_inputs", "a call does this itself"),
    ("load_ip_adapter unload_ip_adapter set_ip_adapter_scale", "JanusFlow has no IP-Adapter"),
    ("load_textual_inversion unload_textual_inversion", "JanusFlow takes no added embeddings"),
    ("enable_freeu disable_freeu", "FreeU is for the skip connections of Stable Diffusion's U-Net"),
)  # fmt: skip
"""Attributes and methods of a pipeline."""

FIXED = _table(
    ("vae", "pass another one to from_pretrained(vae=...)"),
    ("image_processor", "output_type sets the type of the returned images"),
    ("tokenizer", "the model was trained with the checkpoint's own tokenizer"),
    ("model components", "JanusFlowPipeline(model) makes a pipeline of another model"),
)
"""Attributes of a pipeline that exist but cannot be replaced."""

_OFFLOAD = "nothing is offloaded: all weights stay on {device}, where the pipeline runs; pipe.to() moves them"
_ATTENTION = "attention is a fused kernel that stores no scores"
ONE_BY_ONE = "the VAE decodes one image at a time already"
NO_OPS = _table(
    (
        "enable_model_cpu_offload enable_sequential_cpu_offload enable_group_offload maybe_free_model_hooks "
        "remove_all_hooks reset_device_map",
        _OFFLOAD,
    ),
    (
        "enable_attention_slicing disable_attention_slicing set_attention_slice "
        "enable_xformers_memory_efficient_attention disable_xformers_memory_efficient_attention "
        "set_use_memory_efficient_attention_xformers",
        _ATTENTION,
    ),
    ("enable_vae_slicing disable_vae_slicing enable_vae_tiling disable_vae_tiling", ONE_BY_ONE),
    ("fuse_qkv_projections unfuse_qkv_projections", "projections are fused when the weights are loaded"),
)
"""Methods that have no effect, and the reasons."""


def refuse(given: Mapping[str, Any], reasons: Mapping[str, str], function: Callable[..., Any]) -> None:
    """Raise InputError for the first argument that asks for something `function` does not do. For a name of diffusers
    it says what to do instead; for any other, which arguments there are. None and empty values ask for nothing."""
    for name, value in given.items():
        if name in reasons:
            if not _asks_nothing(name, value):
                raise InputError(f"{name}: not supported, got {value!r:.60}; {reasons[name]}")
            continue
        parameters = inspect.signature(function).parameters.values()
        accepted = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
        close = get_close_matches(name, accepted, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"{name}: unknown argument, expected one of {', '.join(accepted)}{meant}")


def _asks_nothing(name: str, value: Any) -> bool:
    if isinstance(value, str | list | tuple | dict):
        return not any(value)
    return value is None or value is False or (name in ("eta", "denoising_start") and value == 0)
