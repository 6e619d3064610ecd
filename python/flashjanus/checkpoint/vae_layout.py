"""Targets of the VAE's decoder from a diffusers AutoencoderKL checkpoint. Declarations only; load.py reads."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from flashjanus.checkpoint.layout import Layout, LayoutBuilder, Source, Target
from flashjanus.checkpoint.vae_config import VaeConfig

# diffusers renamed the attention projections; published files have either names.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# Left: diffusers' names. Right: names in the code that first trained such VAEs, as in sdxl_vae.safetensors.
_COMPVIS = (
    *((".upsamplers.0.conv.", ".upsample.conv."), (".downsamplers.0.conv.", ".downsample.conv.")),
    *((".resnets.", ".block."), (".conv_shortcut.", ".nin_shortcut.")),
    *((".conv_norm_out.", ".norm_out."), ("mid_block.attentions.0.", "mid.attn_1."), (".group_norm.", ".norm.")),
    *((".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."), (".to_out.0.", ".proj_out.")),
)


def vae_layout(config: VaeConfig) -> Layout:
    """All targets of the decoder, prefixed "vae."; convolution weights (O, I, kh, kw) are channels-last in memory."""
    build = LayoutBuilder()
    widths = config.block_out_channels[::-1]
    top, latent = widths[0], config.latent_channels
    if config.use_post_quant_conv:
        _conv(build, "post_quant", "post_quant_conv", latent, latent, 1)
    _conv(build, "conv_in", "decoder.conv_in", top, latent, 3)
    _resnet(build, "mid.resnet.0", "decoder.mid_block.resnets.0", top, top)
    if config.mid_block_add_attention:
        _attention(build, "mid.attn", "decoder.mid_block.attentions.0", top)
    _resnet(build, "mid.resnet.1", "decoder.mid_block.resnets.1", top, top)
    before = top
    for i, width in enumerate(widths):
        at = f"decoder.up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            _resnet(build, f"up.{i}.resnet.{j}", f"{at}.resnets.{j}", width, width if j else before)
        if i < len(widths) - 1:
            _conv(build, f"up.{i}.upsample", f"{at}.upsamplers.0.conv", width, width, 3)
        before = width
    _norm(build, "norm_out", "decoder.conv_norm_out", before)
    _conv(build, "conv_out", "decoder.conv_out", config.out_channels, before, 3)
    targets = [
        replace(
            target,
            sources=tuple(replace(s, names=(*s.names, compvis_name(s.names[0], len(widths)))) for s in target.sources),
        )
        for target in build.targets
    ]
    return Layout(targets, ("encoder.*", "quant_conv.*"))


@lru_cache(4096)  # a model makes its layout several times
def compvis_name(name: str, resolutions: int) -> str:
    """The tensor's name in the code that trained such VAEs, whose decoder numbers resolutions in reverse order."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{resolutions - 1 - int(found[1])}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    for ours, theirs in _COMPVIS:
        name = name.replace(ours, theirs)
    return name


def _conv(build: LayoutBuilder, name: str, source: str, out: int, into: int, kernel: int) -> None:
    shape = (out, into, kernel, kernel)
    weight = Source((f"{source}.weight",), (shape,))
    build.targets.append(Target(f"vae.{name}.w", shape, "matrix", (weight,), channels_last=True))
    build.w(f"vae.{name}.b", f"{source}.bias", (out,), "matrix")


def _norm(build: LayoutBuilder, name: str, source: str, width: int) -> None:
    build.wb(f"vae.{name}", source, (width,), "vector")


def _resnet(build: LayoutBuilder, name: str, source: str, out: int, into: int) -> None:
    _norm(build, f"{name}.norm1", f"{source}.norm1", into)
    _conv(build, f"{name}.conv1", f"{source}.conv1", out, into, 3)
    _norm(build, f"{name}.norm2", f"{source}.norm2", out)
    _conv(build, f"{name}.conv2", f"{source}.conv2", out, out, 3)
    if out != into:
        _conv(build, f"{name}.shortcut", f"{source}.conv_shortcut", out, into, 1)


def _attention(build: LayoutBuilder, name: str, source: str, width: int) -> None:
    """One head over all positions. Old files store its projections as 1x1 convolutions."""

    def stored(part: str, kind: str) -> Source:
        names = (f"{source}.{part}.{kind}", f"{source}.{OLD_NAMES[part]}.{kind}")
        return Source(names, ((width, width), (width, width, 1, 1)) if kind == "weight" else ((width,),))

    _norm(build, f"{name}.norm", f"{source}.group_norm", width)
    for to, parts in (("qkv", ("to_q", "to_k", "to_v")), ("proj", ("to_out.0",))):
        rows = len(parts) * width
        build.add(f"vae.{name}.{to}.w", (rows, width), "matrix", *(stored(part, "weight") for part in parts))
        build.add(f"vae.{name}.{to}.b", (rows,), "matrix", *(stored(part, "bias") for part in parts))
