"""The plans of the released model on a GPU, made without one and without weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig
from flashjanus.engine.plan import Plan
from flashjanus.engine.runtime.cuda import Gpu
from flashjanus.execution.runner import Runner
from flashjanus.measure.bench.models import configs
from flashjanus.model import Policy
from gpu_stand_in import StandInDriver

SIZES: list[tuple[str, dict[str, int]]] = [
    ("flow_prepare", dict(R=1, U=1, P=64, K=30)),
    *((name, dict(R=rows, U=rows, P=64, K=30)) for name in ("flow_step", "flow_step_storing") for rows in (1, 16)),
    ("flow_step_recalling", dict(R=1, U=1, P=64, K=30)),
    *(("prefill", dict(B=rows, N=640, S=768, F=1 + 576 * rows, K=128)) for rows in (1, 8, 32)),
    *(("decode_step", dict(B=rows, S=768, K=128)) for rows in (1, 8, 32)),
    ("encode_images", dict(I=1)),
    ("decode_latents", dict(B=1, H=48, W=48)),
]
"""Buckets that benchmarks/gpu_stages/workload.py meets."""


def released_plans() -> Iterator[Plan]:
    """In bf16, and with the language model in int8 and e4m3."""
    of, vae = configs("full")
    config, vae_config, gpu = JanusFlowConfig.from_dict(of), VaeConfig.from_dict(vae), Gpu(StandInDriver())
    vae_policy = Policy.of(torch.bfloat16)
    for quantization in (None, "int8", "fp8"):
        policy = Policy.of(torch.bfloat16, quantization=quantization)
        device = torch.device("cuda", 0)
        runner = Runner(config, policy, {}, device, vae_config=vae_config, vae_policy=vae_policy, gpu=gpu)
        for program, bucket in SIZES:
            yield runner.plan(program, **bucket)
