"""The programs, as graphs over symbolic sizes.

R images (or prompts); U of them are guided, and their unconditional branches are rows R .. R+U-1, of which the first V
run; P prompt capacity, K evaluations (or new tokens), B chat rows, N prompt tokens, S key slots, F feature rows, I
images. Prefixes are right-aligned: a prompt of n tokens fills slots P-n .. P-1, the time token slot P, and the image
tokens the slots after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from flashjanus.checkpoint import JanusFlowConfig, LanguageConfig, Target, VaeConfig
from flashjanus.engine.formats import Weight
from flashjanus.engine.graph import Graph, Value, full_name
from flashjanus.engine.ops import step_cache
from flashjanus.engine.ops.flow_update import COLUMNS
from flashjanus.engine.specs import Dim, TensorSpec

from . import llama, siglip, uvit, vae
from .policy import Policy

Weights = Mapping[str, TensorSpec | Weight]
I32, F32 = torch.int32, torch.float32
R, U, V, P, K = (Dim.symbol(s) for s in "RUVPK")
B, N, S, F, IMAGES = (Dim.symbol(s) for s in "BNSFI")
HEIGHT, WIDTH = Dim.symbol("H"), Dim.symbol("W")


def weight_specs(targets: list[Target], policy: Policy, language: LanguageConfig | None = None) -> Weights:
    """The weight or spec of every target, and the spec of the rotary table if a language model is among them."""
    specs = {target.name: policy.kept(target) for target in targets}
    if language is not None:
        shape = (language.max_position_embeddings, 2, language.head_dim // 2)
        specs["llm.rope"] = TensorSpec(shape, policy.vector)
    return specs


def rope_table(config: LanguageConfig, policy: Policy) -> torch.Tensor:
    """(positions, 2, head_dim / 2): cosines and sines of position * theta^(-2 i / head_dim).

    In official numerics the frequencies pass through the model's dtype: `.to(bfloat16)` casts the official buffers too.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=F32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponent).to(policy.vector).float()
    angles = torch.arange(config.max_position_embeddings, dtype=F32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(policy.vector)


def encode_images(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """pixels (I, 3, S, S) f32 -> `features` (I, N, D), aligned."""
    g = Graph("encode_images", weights)
    size = config.understanding.image_size
    pixels = g.input("pixels", (IMAGES, 3, size, size), F32)
    g.output("features", siglip.encode(g, config.understanding, policy, pixels))
    return g


def _sampling(g: Graph, logits: Value) -> None:
    rows = logits.shape[0]
    settings = [
        g.input(name, (rows,), dtype)
        for name, dtype in (("temperature", F32), ("top_k", I32), ("top_p", F32), ("penalty", F32))
    ]
    uniforms = g.input("uniforms", (rows, K), F32)
    seen = g.state("seen", (rows, logits.shape[1]), torch.uint8)
    token = g.values.get("token") or g.state("token", (rows,), I32)
    g.add("sample_token", logits, *settings, uniforms, seen, token, g.state("step", (rows,), I32))
    g.output("logits", logits)


def prefill(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """ids (B, N), right-aligned -> keys and values of the prompt in the caches, `logits` (B, V), the first `token`.

    `index` (B, N) picks a row of `features` where >= 0: 0 is the begin-of-image embedding, the others image features.
    """
    language = config.language
    g = Graph("prefill", weights, rows=(B,))
    ids, index = g.input("ids", (B, N), I32), g.input("index", (B, N), I32)
    features = g.input("features", (F, language.hidden_size), policy.matrix, on_device=True)
    k, v = llama.caches(g, language, policy, B, S)
    h = g.add("embed", ids, g.weight("llm.embed"), index, features, dtype=policy.residual)
    numbers = {name: g.input(name, (B, N), I32) for name in ("positions", "slots", "kv_end")}
    causal = config.image_attention == "causal"
    kv_start, adapter = g.input("kv_start", (B,), I32), llama.adapters(g, B)
    seq = llama.Sequences(k, v, kv_start=kv_start, **numbers, causal=causal, adapter=adapter)
    through = llama.layers(g, language, policy, h, seq, last_only=True)
    assert through is not None
    _sampling(g, llama.linear(g, g.select(through[1], 1, 0), "llm.head", "logits"))
    return g


def decode_step(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """Decode one token per row: takes `token`, caches its key and value, gives `logits` and the next `token`.

    A row that has produced its `eos` is no longer `live`: it is still computed with the others, but does not advance.
    """
    language = config.language
    g = Graph("decode_step", weights, rows=(B,), decodes=True)
    token, position, slot = (g.state(name, (B,), I32) for name in ("token", "position", "slot"))
    k, v = llama.caches(g, language, policy, B, S)
    h = g.add("embed", g.reshape(token, (B, 1)), g.weight("llm.embed"), None, None, dtype=policy.residual)
    slots = g.reshape(slot, (B, 1))
    # every key before its own slot, and its own by the rule
    kv_start, adapter = g.input("kv_start", (B,), I32), llama.adapters(g, B)
    positions = g.reshape(position, (B, 1))
    seq = llama.Sequences(k, v, positions, slots, kv_start, kv_end=slots, causal=True, adapter=adapter)
    through = llama.layers(g, language, policy, h, seq)
    assert through is not None
    logits = llama.linear(g, g.reshape(through[1], (B, language.hidden_size)), "llm.head", "logits")
    _sampling(g, logits)
    ends = (g.input("eos", (B,), I32), g.state("live", (B,), I32))
    g.add("advance", position, slot, token, *ends, last=language.max_position_embeddings - 1)
    return g


def flow_prepare(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """All of generation that does not depend on the latents, once per prompt.

    ids (R, P) right-aligned, t (R, K) -> keys and values of the prompts in slots 0 .. P-1 and of every step's
    time token in slots P .. P+K-1 (state, rows R+U), and `modulation` (R, K, E). An unconditional row has one prefix
    key, its prompt's first token, in slot P-1. A time token sees its prefix and itself.
    """
    language = config.language
    g = Graph("flow_prepare", weights, rows=(R, R + U))
    rows = R + U
    k, v = llama.caches(g, language, policy, rows, P + K)
    ids, t = g.input("ids", (R, P), I32), g.input("t", (R, K), F32)

    kv_start, adapter = g.input("kv_start", (rows,), I32), llama.adapters(g, rows)
    numbers = {name: g.input(f"prompt_{name}", (R, P), I32) for name in ("positions", "slots", "kv_end")}
    prompt_start = g.narrow(kv_start, 0, 0, R)
    image_k, image_v = g.narrow(k, 1, 0, R), g.narrow(v, 1, 0, R)
    of_prompts = None if adapter is None else g.narrow(adapter, 0, 0, R)
    seq = llama.Sequences(image_k, image_v, kv_start=prompt_start, **numbers, causal=True, adapter=of_prompts)
    h = g.add("embed", ids, g.weight("llm.embed"), None, None, dtype=policy.residual)
    llama.layers(g, language, policy, h, seq, keys_only=True)
    g.add("copy_slot", k, v, prompt_start, slot=P - 1)

    t_emb, modulation = uvit.time_tables(g, config, policy, t)
    h = g.add("branch_rows", t_emb, B=rows, dtype=policy.residual, label="time_tokens")
    numbers = {name: g.input(f"time_{name}", (rows, K), I32) for name in ("positions", "slots", "kv_end")}
    g.scope = "time."
    seq = llama.Sequences(k, v, kv_start=kv_start, **numbers, causal=False, adapter=adapter)
    llama.layers(g, language, policy, h, seq, keys_only=True)
    g.output("t_emb", t_emb)
    if modulation is not None:
        g.output("modulation", modulation)
    return g


@dataclass(frozen=True)
class FlowForm:
    """A form of `flow_step`. All forms share inputs and states.

    cache: None; "store", where rows may store the language model's contribution to its input, or recall it, as the
    lines of the input `cache` say; "recall", where all rows recall it and the language model does not run. Without all
    `branches`, the unconditional ones after the first V are left alone.
    """

    cache: Literal["store", "recall"] | None = None
    branches: bool = True

    def __str__(self) -> str:
        of_cache = {None: [], "store": ["storing"], "recall": ["recalling"]}[self.cache]
        return "_".join([*of_cache, *([] if self.branches else ["conditional"])])

    @property
    def name(self) -> str:
        """The name that the runner and the command line use."""
        return full_name("flow_step", str(self))


_CACHES: tuple[Literal["store", "recall"] | None, ...] = (None, "store", "recall")
FLOW_FORMS = {form.name: form for cache in _CACHES for form in (FlowForm(cache), FlowForm(cache, branches=False))}


def flow_step(config: JanusFlowConfig, policy: Policy, weights: Weights, form: FlowForm = FlowForm()) -> Graph:
    """One evaluation of every row that has evaluations left: `flow_update` on z, history, kept and step, in place.

    `velocity` (R+U, h', w', c p p) holds the patches before guidance; without all branches, it is (R+V, ...).
    """
    cache, branches = form.cache, form.branches
    language, enc = config.language, config.gen_encoder
    g = Graph("flow_step", weights, rows=(R, R + U), form=str(form))
    tokens = config.num_image_tokens
    size = config.latent_size
    z, history = (g.state(name, (R, enc.input_channels, size, size), policy.latents) for name in ("z", "history"))
    step = g.state("step", (R,), I32)
    steps, schedule = g.input("steps", (R,), I32), g.input("schedule", (R, K, COLUMNS), F32)
    width = uvit.modulation_width(config)
    table = g.input("modulation", (R, K, width), policy.vector, on_device=True) if width else None

    def of_branches(value: Value, dim: int = 0) -> Value:
        """`value`, which has all branches, without the branches that do not run."""
        return value if branches else g.narrow(value, dim, 0, R + V)

    x = uvit.encode(g, config, policy, z, table, step)
    flat = g.reshape(x, (R, tokens, enc.channels))
    flat = g.add("cast", flat, dtype=policy.matrix, label="enc.tokens")
    h = g.add("linear", flat, g.weight("enc.aligner.w"), g.optional_weight("enc.aligner.b"), label="enc.aligner.out")
    if policy.residual is not policy.matrix:
        h = g.add("cast", h, dtype=policy.residual, label="enc.residual")
    eps = language.rms_norm_eps
    total = hidden = None
    if cache != "recall":
        total, hidden = _image_tokens(g, config, policy, h, step, of_branches)
    if cache is not None:
        shape = (R + U, tokens, language.hidden_size)
        slots = [of_branches(g.state(name, shape, policy.matrix)) for name in ("slot_0", "slot_1")]
        lines = g.input("cache", (R, K, step_cache.COLUMNS), F32)
        stream = g.add("step_cache", h, total, *slots, lines, step, label="llm.stream")
        hidden = g.add("rms_norm", stream, g.weight("llm.norm"), eps=eps, dtype=policy.residual, label="llm.hidden")
    assert hidden is not None
    norm = g.weight("dec.aligner.norm")
    normed = g.add("rms_norm", hidden, norm, eps=eps, dtype=policy.matrix, label="dec.aligner.norm.out")
    h = g.add("linear", normed, g.weight("dec.aligner.w"), g.optional_weight("dec.aligner.b"), label="dec.aligner.out")
    velocity = uvit.decode(g, config, policy, h, x, table, step)
    g.output("velocity", velocity)
    kept = g.state("kept", (R, *velocity.shape[1:]), velocity.dtype)
    g.add("flow_update", velocity, z, history, kept, schedule, step, steps)
    return g


def _image_tokens(
    g: Graph,
    config: JanusFlowConfig,
    policy: Policy,
    h: Value,
    step: Value,
    of_branches: Callable[..., Value],
) -> tuple[Value, Value]:
    """The language model's residual stream and its final norm, after the prompt and the step's time token."""
    language, rows, tokens = config.language, R + U, config.num_image_tokens
    heads = (language.num_key_value_heads, language.head_dim)
    shape = (language.num_hidden_layers, rows, K, *heads)
    tables = [g.input(name, shape, policy.matrix, on_device=True) for name in ("k_table", "v_table")]
    k_table, v_table, k, v = (
        of_branches(value, 1) for value in (*tables, *llama.caches(g, language, policy, rows, P + (1 + tokens)))
    )
    numbers = {name: of_branches(g.input(name, (rows, tokens), I32)) for name in ("positions", "slots", "kv_end")}
    kv_start, adapter = of_branches(g.input("kv_start", (rows,), I32)), llama.adapters(g, rows)
    adapter = None if adapter is None else of_branches(adapter)
    causal = config.image_attention == "causal"
    seq = llama.Sequences(k, v, kv_start=kv_start, **numbers, causal=causal, adapter=adapter)
    g.add("load_slot", k_table, v_table, step, k, v, slot=P)
    through = llama.layers(g, language, policy, h, seq, out_dtype=policy.residual)
    assert through is not None
    return through


def decode_latents(config: VaeConfig, policy: Policy, weights: Weights) -> Graph:
    """z (B, c, H, W) f32 -> `image` (B, 3, H s, W s), about [-1, 1]."""
    g = Graph("decode_latents", weights)
    z = g.input("z", (B, config.latent_channels, HEIGHT, WIDTH), F32, on_device=True)
    g.output("image", vae.decode(g, config, policy, z))
    return g
