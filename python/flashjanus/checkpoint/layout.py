"""Which tensors the model needs, and where each is in an official checkpoint. Declarations only; load.py reads.

A target is one tensor in the form that the kernels need: projections that share an input are stacked along dim 0,
singleton dimensions are removed, and depthwise weights are channels-last. Targets of kind "matrix" (weights and biases
of GEMMs and convolutions) have the compute dtype; those of kind "vector" have the dtype of norms, the time path and the
latents' own convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flashjanus.checkpoint.config import JanusFlowConfig
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.engine.formats import FORMATS, Format, Weight
from flashjanus.engine.formats.tiles import TILES

Kind = Literal["matrix", "vector"]
Shape = tuple[int, ...]
FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: accepted `names`, `shapes` and `dtypes`; the first name and shape are the usual."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...] = FLOAT_DTYPES


@dataclass(frozen=True)
class Target:
    """One tensor of the model: its sources, permuted if asked, viewed as (rows, *shape[1:]) and stacked along dim 0.

    same_as: the target whose tensor this one shares (tied weights); its own sources are not read. scales: those of
    8-bit sources, one float32 per row, stacked in the same way.
    """

    name: str
    shape: Shape
    kind: Kind
    sources: tuple[Source, ...]
    permute: tuple[int, ...] = ()
    channels_last: bool = False
    same_as: str = ""
    scales: tuple[Source, ...] = ()

    @property
    def multiplied(self) -> bool:
        """True for a matrix of the model that is used only as the weight of linears."""
        return self.kind == "matrix" and len(self.shape) == 2 and self.name != "llm.embed" and not self.same_as

    @property
    def quantizable(self) -> bool:
        """True for a linear of the language model: these have fewer bits in a quantized model."""
        return self.multiplied and self.name.startswith("llm.")

    def weight(self, dtype: torch.dtype, quantization: str | None = None, tiled: bool = False) -> Weight | None:
        """A linear's weight as stored by a model that computes in `dtype`; None if the target is no linear's weight.

        tiled: store it in AMX tiles if it fits; for a stacked gated pair, each half has to fit. It is also stored in
        the formats for decoding that it fits, except for the head, whose errors would change the chosen token.
        """
        if not self.multiplied:
            return None
        n, k = self.shape

        def fits(fmt: Format) -> bool:
            return n % 2 == 0 and fmt.refuses(n // 2, k, dtype) is None

        method = QUANTIZATIONS.get(quantization or "") if self.quantizable else None
        first, *beside = (FORMATS[name] for name in (("dense",) if method is None else method.formats))
        tiles = TILES.get(first) if tiled else None
        kept = [first if tiles is None or not fits(tiles) else tiles]
        kept += [fmt for fmt in beside if self.name != "llm.head" and fits(fmt)]
        sources = tuple((source.names[0], source.shapes[0][0]) for source in self.sources)
        return Weight(self.name, (n, k), dtype, tuple(kept), sources)


class Layout(list[Target]):
    """Targets in load order; `unused` are patterns of checkpoint tensors that inference never reads."""

    def __init__(self, targets: Iterable[Target], unused: tuple[str, ...]):
        super().__init__(targets)
        self.unused = unused


class LayoutBuilder:
    """Collects targets; `w` is weight only, `wb` weight and bias."""

    def __init__(self) -> None:
        self.targets: list[Target] = []

    def add(self, name: str, shape: Shape, kind: Kind, *sources: Source, permute: tuple[int, ...] = ()) -> None:
        self.targets.append(Target(name, shape, kind, sources, permute))

    def w(self, name: str, source: str, shape: Shape, kind: Kind, stored: Shape | None = None) -> None:
        self.add(name, shape, kind, Source((source,), (stored or shape,)))

    def wb(
        self, name: str, source: str, shape: Shape, kind: Kind, stored: Shape | None = None, *, bias: bool = True
    ) -> None:
        """name.w from source.weight, and name.b (shape[:1]) from source.bias where there is one."""
        self.w(f"{name}.w", f"{source}.weight", shape, kind, stored)
        if bias:
            self.w(f"{name}.b", f"{source}.bias", shape[:1], kind)


def weight_layout(config: JanusFlowConfig) -> Layout:
    """All targets of the language model, understanding encoder, generation encoder and generation decoder."""
    build = LayoutBuilder()
    _language(build, config)
    _understanding(build, config)
    _generation(build, config)
    targets = [_quantized(target, config.quantization) for target in build.targets]
    return Layout(targets, ("vision_und_enc_model.vision_tower.attn_pool.*", "*.rotary_emb.inv_freq"))


def scale_name(name: str) -> str:
    """The name under which a quantized checkpoint stores the scales of the weight `name`."""
    return f"{name}_scale"


def _quantized(target: Target, method: str | None) -> Target:
    if method is None or not target.quantizable:
        return target
    dtype = QUANTIZATIONS[method].stored
    scales = [
        Source(tuple(map(scale_name, s.names)), tuple(shape[:1] for shape in s.shapes), ("float32",))
        for s in target.sources
    ]
    return replace(target, sources=tuple(replace(s, dtypes=(dtype,)) for s in target.sources), scales=tuple(scales))


def _language(build: LayoutBuilder, config: JanusFlowConfig) -> None:
    c = config.language
    d, f, v = c.hidden_size, c.intermediate_size, c.vocab_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    build.w("llm.embed", "language_model.model.embed_tokens.weight", (v, d), "matrix")
    for i in range(c.num_hidden_layers):
        to, at = f"llm.{i}", f"language_model.model.layers.{i}"
        build.w(f"{to}.norm1", f"{at}.input_layernorm.weight", (d,), "vector")
        qkv = [
            Source((f"{at}.self_attn.{p}_proj.weight",), ((rows, d),)) for p, rows in (("q", q), ("k", kv), ("v", kv))
        ]
        build.add(f"{to}.qkv", (q + 2 * kv, d), "matrix", *qkv)
        build.w(f"{to}.o", f"{at}.self_attn.o_proj.weight", (d, q), "matrix")
        build.w(f"{to}.norm2", f"{at}.post_attention_layernorm.weight", (d,), "vector")
        gate_up = [Source((f"{at}.mlp.{p}_proj.weight",), ((f, d),)) for p in ("gate", "up")]
        build.add(f"{to}.gate_up", (2 * f, d), "matrix", *gate_up)
        build.w(f"{to}.down", f"{at}.mlp.down_proj.weight", (d, f), "matrix")
    build.w("llm.norm", "language_model.model.norm.weight", (d,), "vector")
    head = Source(("language_model.lm_head.weight",), ((v, d),))
    same_as = "llm.embed" if c.tie_word_embeddings else ""
    build.targets.append(Target("llm.head", (v, d), "matrix", (head,), same_as=same_as))


def _understanding(build: LayoutBuilder, config: JanusFlowConfig) -> None:
    c = config.understanding
    w, m, p, d = c.width, c.mlp_width, c.patch_size, config.language.hidden_size
    n = config.num_understanding_tokens
    tower = "vision_und_enc_model.vision_tower"
    build.wb("vit.patch", f"{tower}.patch_embed.proj", (w, 3 * p * p), "matrix", (w, 3, p, p))
    build.w("vit.pos", f"{tower}.pos_embed", (n, w), "vector", (1, n, w))
    for i in range(c.layers):
        to, at = f"vit.{i}", f"{tower}.blocks.{i}"
        build.wb(f"{to}.norm1", f"{at}.norm1", (w,), "vector")
        build.wb(f"{to}.qkv", f"{at}.attn.qkv", (3 * w, w), "matrix")
        build.wb(f"{to}.proj", f"{at}.attn.proj", (w, w), "matrix")
        build.wb(f"{to}.norm2", f"{at}.norm2", (w,), "vector")
        build.wb(f"{to}.fc1", f"{at}.mlp.fc1", (m, w), "matrix")
        build.wb(f"{to}.fc2", f"{at}.mlp.fc2", (w, m), "matrix")
    build.wb("vit.norm", f"{tower}.norm", (w,), "vector")
    build.wb("vit.aligner", "vision_und_enc_aligner", (d, w), "matrix")
    build.w("vit.begin", "beg_of_und_embed", (1, d), "vector")


def _generation(build: LayoutBuilder, config: JanusFlowConfig) -> None:
    e, g, d = config.gen_encoder, config.gen_decoder, config.language.hidden_size
    enc, dec = "vision_gen_enc_model", "vision_gen_dec_model"
    c, k = e.channels, e.kernel_size
    build.wb("time.1", f"{enc}.time_embed.linear_1", (d, c), "vector", bias=e.use_bias)
    build.wb("time.2", f"{enc}.time_embed.linear_2", (d, d), "vector", bias=e.use_bias)
    _modulation(build, config)
    # in_conv has a bias regardless of use_bias: the official constructor does not pass it on.
    build.wb("enc.in", f"{enc}.in_conv", (c, e.input_channels, k, k), "vector")
    for i in range(e.blocks):
        _convnext(build, f"enc.{i}", f"{enc}.mid_block.res_blocks.{i}", c, e.use_bias)
    build.wb("enc.aligner", "vision_gen_enc_aligner", (d, c), "matrix")
    build.w("dec.aligner.norm", "vision_gen_dec_aligner_norm.weight", (d,), "vector")
    build.wb("dec.aligner", "vision_gen_dec_aligner", (g.in_channels, d), "matrix")
    build.w("dec.norm", f"{dec}.input_norm.weight", (g.in_channels,), "vector")
    for i in range(g.blocks):
        _convnext(build, f"dec.{i}", f"{dec}.mid_block.res_blocks.{i}", g.width, g.use_bias)
    for j in range(g.upsamples):
        rows = 4 * (g.out_channels if j == g.upsamples - 1 else g.channels)
        cols = g.channels if j else g.width
        to, at = f"dec.out.{j}", f"{dec}.out_convs.{j}"
        build.w(f"{to}.norm", f"{at}.norm.weight", (cols,), "vector")
        build.wb(to, f"{at}.unpatch_conv", (rows, cols), "vector", (rows, cols, 1, 1), bias=g.use_bias)


def _modulation(build: LayoutBuilder, config: JanusFlowConfig) -> None:
    """mod: (scale, shift) rows of all ConvNeXt blocks in one stack, encoder blocks first; they depend only on t."""
    e, g, d = config.gen_encoder, config.gen_decoder, config.language.hidden_size
    blocks = [
        (f"{model}.mid_block.res_blocks.{i}.cond_embeds_mapper", 2 * width)
        for model, count, width in (
            ("vision_gen_enc_model", e.blocks, e.channels),
            ("vision_gen_dec_model", g.blocks, g.width),
        )
        for i in range(count)
    ]
    if not blocks:
        return
    total = sum(rows for _, rows in blocks)
    build.add("mod.w", (total, d), "vector", *(Source((f"{at}.weight",), ((rows, d),)) for at, rows in blocks))
    if e.use_bias:
        build.add("mod.b", (total,), "vector", *(Source((f"{at}.bias",), ((rows,),)) for at, rows in blocks))


def _convnext(build: LayoutBuilder, to: str, at: str, c: int, bias: bool) -> None:
    depthwise = Source((f"{at}.depthwise.weight",), ((c, 1, 7, 7),))
    build.add(f"{to}.dw.w", (7, 7, c), "matrix", depthwise, permute=(2, 3, 1, 0))
    if bias:
        build.w(f"{to}.dw.b", f"{at}.depthwise.bias", (c,), "matrix")
    build.w(f"{to}.norm", f"{at}.norm.weight", (c,), "vector")
    build.wb(f"{to}.fc1", f"{at}.channelwise_linear_1", (4 * c, c), "matrix", bias=bias)
    for part, stored in (("w", "weight"), ("b", "bias")):
        build.w(f"{to}.grn.{part}", f"{at}.channelwise_norm.{stored}", (4 * c,), "vector", (1, 1, 1, 4 * c))
    build.wb(f"{to}.fc2", f"{at}.channelwise_linear_2", (c, 4 * c), "matrix", bias=bias)
