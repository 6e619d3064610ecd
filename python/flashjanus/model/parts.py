"""Programs for a caller that runs the loop itself: the parts of a flow step, each with tensors as inputs and outputs.

R rows, of whose latents only the size is known; B rows of N embeddings, which are read into S key slots.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.engine.graph import Graph

from . import llama, uvit
from .policy import Policy
from .programs import F32, I32, B, N, R, S, Weights

READS: Mapping[str, bool] = {"read_embeds": True, "read_embeds_masked": False}
"""The forms of `read_embeds` by name: whether every token sees exactly the tokens from its row's first up to itself."""


def encode_latents(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """Latents z (R, c, L, L) at times t (R, 1) in [0, 1000) -> `x` (R, h, w, C), `t_emb` (R, 1, D)."""
    g = Graph("encode_latents", weights)
    size = config.latent_size
    z = g.input("z", (R, config.gen_encoder.input_channels, size, size), policy.latents, on_device=True)
    t_emb, table = uvit.time_tables(g, config, policy, g.input("t", (R, 1), F32))
    g.output("x", uvit.encode(g, config, policy, z, table, g.input("step", (R,), I32)))
    g.output("t_emb", t_emb)
    return g


def read_embeds(config: JanusFlowConfig, policy: Policy, weights: Weights, name: str = "read_embeds") -> Graph:
    """embeds (B, N, D) -> `hidden` (B, N, D) after the final norm. Keys and values are written to the caches."""
    language = config.language
    g = Graph(name, weights, rows=(B,))
    h = g.input("embeds", (B, N, language.hidden_size), policy.residual, on_device=True)
    k, v = llama.caches(g, language, policy, B, S)
    numbers = {key: g.input(key, (B, N), I32) for key in ("positions", "slots", "kv_end")}
    seq = llama.Sequences(k, v, kv_start=g.input("kv_start", (B,), I32), **numbers, causal=READS[name])
    through = llama.layers(g, language, policy, h, seq, out_dtype=policy.residual)
    assert through is not None
    g.output("hidden", through[1])
    return g


def decode_velocity(config: JanusFlowConfig, policy: Policy, weights: Weights) -> Graph:
    """Aligned h (R, h w, C), the encoder's x (R, h, w, C) and t_emb (R, 1, D) -> `velocity` (R, h', w', c p p)."""
    g = Graph("decode_velocity", weights)
    dec, enc, grid = config.gen_decoder, config.gen_encoder, config.grid
    h = g.input("h", (R, config.num_image_tokens, dec.in_channels), policy.matrix, on_device=True)
    x = g.input("x", (R, grid, grid, enc.channels), policy.residual, on_device=True)
    t_emb = g.input("t_emb", (R, 1, config.language.hidden_size), policy.vector, on_device=True)
    table = uvit.modulation(g, config, t_emb)
    g.output("velocity", uvit.decode(g, config, policy, h, x, table, g.input("step", (R,), I32)))
    return g
