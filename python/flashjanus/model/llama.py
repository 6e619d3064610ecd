"""The language model: Llama layers over right-aligned key/value buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashjanus.checkpoint import LanguageConfig
from flashjanus.engine.graph import Graph, Value
from flashjanus.engine.specs import Size

from .policy import Policy


@dataclass(frozen=True)
class Sequences:
    """Where the queries of a pass stand: cache windows (L, B, S, G, D) and the arguments of the attention rule.

    positions (B, N): RoPE positions. slots (B, N): where each token's key is written. kv_start (B,), kv_end (B, N).
    causal: the arguments always mean that every token sees kv_start up to itself. adapter (B,): the slot of each row's
    low-rank adapter, starting at 1, or 0 for none; None if the model has no slots.
    each row's low-rank adapter, from 1 on, 0 for none; None where the model has no slots.
    """

    k: Value
    v: Value
    positions: Value
    slots: Value
    kv_start: Value
    kv_end: Value
    causal: bool
    adapter: Value | None = None


def linear(g: Graph, x: Value, name: str, label: str) -> Value:
    """x W^T, where `name` is the name of W."""
    y: Value = g.add("linear", x, g.weight(name), label=label)
    return y


def adapters(g: Graph, rows: Size) -> Value | None:
    """The input `adapter` (rows,), if the model has slots for adapters, else None."""
    return g.input("adapter", (rows,), torch.int32) if "llm.0.qkv.lora.a" in g.weights else None


def adapted(
    g: Graph, y: Value, x: Value, name: str, seq: Sequences, *, first: int = 0, norm: str = "", **attrs: Any
) -> None:
    """Add in place to y what each row's adapter contributes to the linear `name`, if the model has slots for adapters.

    x: the input of the linear. If `norm` is given or `gated` is set, x is instead the input of the op before it, which
    then has the linear as its only reader, as fusion requires. first: outputs of the first of stacked projections.
    """
    a = g.optional_weight(f"{name}.lora.a")
    if a is None or seq.adapter is None:
        return
    b, ranks, scale = (g.weight(f"{name}.lora.{part}") for part in ("b", "ranks", "scale"))
    adapter = seq.adapter if y.shape[0] == seq.adapter.shape[0] else g.narrow(seq.adapter, 0, 0, y.shape[0])
    weight = g.weight(norm) if norm else None
    attrs = {"eps": 0.0, "gated": False, "first": first or y.shape[-1], **attrs}
    g.add("low_rank", x, weight, adapter, ranks, scale, a, b, y, label=f"{name.rpartition('.')[2]}.adapter", **attrs)


def caches(g: Graph, config: LanguageConfig, policy: Policy, rows: Size, slots: Size) -> tuple[Value, Value]:
    """The states `k_cache` and `v_cache`, (L, rows, slots, G, D)."""
    shape = (config.num_hidden_layers, rows, slots, config.num_key_value_heads, config.head_dim)
    return g.state("k_cache", shape, policy.matrix), g.state("v_cache", shape, policy.matrix)


def layers(
    g: Graph,
    config: LanguageConfig,
    policy: Policy,
    h: Value,
    seq: Sequences,
    *,
    keys_only: bool = False,
    last_only: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Value, Value] | None:
    """The residual stream after all layers, and its final norm, both (B, N, D), for the tokens h (R, N, D).

    h and the stream have the residual dtype. R < B: the rows are branched after the first QKV, which is the last op
    that both branches of guidance share. keys_only: stop once the last layer's keys are written (nothing is returned).
    last_only: the last layer computes only the last token of each row, (B, 1, D).
    """
    rows = seq.positions.shape[0]
    eps = config.rms_norm_eps
    scope = g.scope
    x = h
    normed = g.add("rms_norm", x, g.weight("llm.0.norm1"), eps=eps, dtype=policy.matrix, label="llm.0.norm1.out")
    for i in range(config.num_hidden_layers):
        last = i == config.num_hidden_layers - 1
        g.scope = f"{scope}llm.{i}."
        qkv = linear(g, normed, f"llm.{i}.qkv", "qkv.out")
        q_rows = config.num_attention_heads * config.head_dim
        adapted(g, qkv, x, f"llm.{i}.qkv", seq, first=q_rows, norm=f"llm.{i}.norm1", eps=eps)
        if qkv.shape[0] != rows:
            qkv = g.add("branch_rows", qkv, B=rows, dtype=policy.matrix, label="qkv.branches")
            x = g.add("branch_rows", x, B=rows, dtype=policy.residual, label="residual.branches")
        k, v = g.select(seq.k, 0, i), g.select(seq.v, 0, i)
        q = g.add(
            "rope_kv_write",
            qkv,
            g.weight("llm.rope"),
            seq.positions,
            seq.slots,
            k,
            v,
            heads=config.num_attention_heads,
            label="q",
        )
        if last and keys_only:
            g.scope = scope
            return None
        kv_end, slots = seq.kv_end, seq.slots
        if last and last_only:
            final = q.shape[1] - 1
            q, x, kv_end, slots = (g.narrow(t, 1, final, 1) for t in (q, x, kv_end, slots))
        rule = dict(scale=config.head_dim**-0.5, causal=seq.causal)
        o = g.add("attention", q, k, v, seq.kv_start, kv_end, slots, **rule, label="attention")
        o = g.reshape(o, (*o.shape[:2], config.num_attention_heads * config.head_dim))
        adapted(g, x, o, f"llm.{i}.o", seq)
        delta = linear(g, o, f"llm.{i}.o", "o.out")
        norm2 = f"llm.{i}.norm2"
        x, normed = g.add("add_rms_norm", x, delta, g.weight(norm2), eps=eps, dtype=policy.matrix, label="residual1")
        gate_up = linear(g, normed, f"llm.{i}.gate_up", "gate_up.out")
        adapted(g, gate_up, x, f"llm.{i}.gate_up", seq, first=config.intermediate_size, norm=norm2, eps=eps)
        adapted(g, x, gate_up, f"llm.{i}.down", seq, gated=True)
        delta = linear(g, g.add("silu_mul", gate_up), f"llm.{i}.down", "down.out")
        norm = g.weight("llm.norm" if last else f"llm.{i + 1}.norm1")
        dtype = out_dtype if last and out_dtype is not None else policy.matrix
        x, normed = g.add("add_rms_norm", x, delta, norm, eps=eps, dtype=dtype, label="residual2")
    g.scope = scope
    return x, normed
