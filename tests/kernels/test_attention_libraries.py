"""flash-attn and xformers after the attention op, on stand-ins that do in torch what the libraries document.

What this shows is that the calls say what is meant; the libraries themselves need a GPU (test_gpu.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from flashjanus.engine.ops import attention, get_op
from op_check import check, make_call, specs_of

CUDA = torch.device("cuda")
OP = get_op("attention")
CASES = [pytest.param(case, id=f"{i}-{case['rule']}") for i, case in enumerate(OP.cases)]


def heads_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.transpose(1, 2) for t in tensors]


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, softmax_scale: float, causal: bool = False
) -> torch.Tensor:
    assert not causal
    out = F.scaled_dot_product_attention(*heads_first(q, k, v), scale=softmax_scale, enable_gqa=True)
    return out.transpose(1, 2)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    cache_leftpad: torch.Tensor,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """Row b: keys cache_leftpad[b] .. cache_seqlens[b], causal from the bottom right; zeros where nothing is seen."""
    assert causal
    assert cache_seqlens.dtype is cache_leftpad.dtype is torch.int32
    out = torch.zeros_like(q)
    for b, (first, last) in enumerate(zip(cache_leftpad.tolist(), cache_seqlens.tolist(), strict=True)):
        seen = max(0, last - first)
        n = min(q.shape[1], seen)  # the queries before see nothing
        if n:
            part = heads_first(q[b : b + 1, -n:], k_cache[b : b + 1, first:last], v_cache[b : b + 1, first:last])
            mask = torch.ones(n, seen, dtype=torch.bool).tril(seen - n)
            o = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=softmax_scale, enable_gqa=True)
            out[b, -n:] = o[0].transpose(0, 1)
    return out


def memory_efficient_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attn_bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    if attn_bias is not None:
        assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        assert attn_bias.stride(2) % 8 == 0
    out = F.scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=attn_bias, scale=scale)
    return out.transpose(1, 2)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    flash, xformers, ops = ModuleType("flash_attn"), ModuleType("xformers"), ModuleType("xformers.ops")
    vars(flash).update(flash_attn_func=flash_attn_func, flash_attn_with_kvcache=flash_attn_with_kvcache)
    vars(ops).update(memory_efficient_attention=memory_efficient_attention)
    for module in (flash, xformers, ops):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(attention, "find_spec", sys.modules.get)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["flash_attn", "xformers"])
def test_a_library_is_asked_for_what_the_rule_says(name: str, case: Mapping[str, Any]) -> None:
    call = make_call(OP, case, torch.bfloat16, False)
    reason = OP.implementations[name].refuses(CUDA, specs_of(call), call.attrs)
    if reason:
        flash = name == "flash_attn" and (case["head_dim"] > 256 or case["rule"] in ("prefix", "block", "gap"))
        assert case["head_dim"] % 8 or flash, reason
        pytest.skip(reason)
    check(OP, call, [name])


@pytest.mark.parametrize("name", ["flash_attn", "xformers"])
def test_without_the_library_the_reason_is_given(name: str) -> None:
    call = make_call(OP, OP.cases[0], torch.bfloat16, False)
    with patch.object(attention, "find_spec", lambda module: None):
        reason = OP.implementations[name].refuses(CUDA, specs_of(call), call.attrs)
    extra = name.replace("_", "-")
    assert reason == f'{name} is not installed: `pip install "flashjanus[{extra}]"`'
    assert OP.implementations[name].refuses(torch.device("cpu")) == "runs on a CUDA device, not on cpu"
