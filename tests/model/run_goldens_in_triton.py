"""Run goldens of the thin model on its Triton kernels, in Triton's interpreter: run_goldens_in_triton.py OUTPUT.

A program of its own, because Triton reads TRITON_INTERPRET when a kernel is defined. Writes JSON: `errors`, relative,
by value; `tokens`, by row, and `expected`; `ops`, by program: those of its plan that have a Triton implementation, each
with the number of nodes that it served.

The interpreter takes a tenth of a millisecond an instruction. Hence in each plan a kernel serves the first node of
every form (op, sizes, attributes), and torch those after it, a second layer for the most part; hence attention works
in larger parts than on a GPU, and integers are not checked for overflow. In test_triton_interpreted.py parts are a
GPU's, and integers are checked.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import Given, Implementation, Op, all_ops
from flashjanus.engine.plan import Plan
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import ImageTokens
from flashjanus.sampling.schedule import Sampler
from flashjanus.triton_kernels import attention, decode_attention
from model.conftest import golden, golden_json, thin_model, thin_vae_model
from model.test_goldens import pixels
from seeded import seeded_state_dict
from small_model import relative_error
from triton.runtime.interpreter import interpreter_builder

CUDA = torch.device("cuda")
OPS = {name: op for name, op in all_ops().items() if "triton" in op.implementations}
NEW_TOKENS = 3


def once_a_form(op: Op) -> Implementation:
    """The op's Triton kernel on CPU tensors: refuses what it does on a GPU, and a form that it has served."""
    on_gpu = op.implementations["triton"]
    served: list[tuple[object, ...]] = []

    def cannot(call: Given) -> str | None:
        specs, attrs = list(call.tensors.values()), call.attrs
        if (specs, attrs) in served:
            return "has served a node of this form"
        reason = on_gpu.refuses(CUDA, specs, attrs)
        if reason is None:
            served.append((specs, attrs))
        return reason

    return replace(on_gpu, on=lambda *of: None, cannot=cannot)


@contextmanager
def triton_in(*programs: str) -> Iterator[dict[str, dict[str, int]]]:
    """Plans of these programs, made meanwhile, are on Triton; gives `ops` of them, filled as they are made."""
    made: dict[str, dict[str, int]] = {}
    plan_of = Runner.plan

    def plan(runner: Runner, program: str, **sizes: int) -> Plan:
        if program not in programs:
            return plan_of(runner, program, **sizes)
        with ExitStack() as stack:
            for op in OPS.values():
                stack.enter_context(patch.dict(op.implementations, triton=once_a_form(op)))
            plan = plan_of(runner, program, **sizes)
        served = Counter(node.op for node in plan.nodes if node.implementation.name == "triton")
        # a dense linear is torch's: the Triton kernel multiplies in 8 bits
        made[program] = {node.op: served[node.op] for node in plan.nodes if node.op in OPS and node.work != "linear"}
        return plan

    with patch.object(Runner, "plan", plan):
        yield made


def flow_step(model: JanusFlow) -> dict[str, float]:
    """The first of case c's two steps: one prompt token, guided."""
    values = golden("generate")
    (case,) = (case for case in json.loads(values.metadata["cases"]) if case["name"] == "c")
    prompt = tuple(values["c.input_ids"][:-1].tolist())
    sizes = dict(guided=1, steps=case["steps"])
    prepared = Prepared(model.runner, prompts=1, capacity=16, **sizes)
    request = FlowRequest(prompt, Sampler(case["steps"], case["cfg_weight"]), values["c.z0"][0])
    prepared.run([request.timed_prompt])
    session = FlowSession(model.runner, rows=1, prompt=16, **sizes)
    session.join(prepared.prefix(0), 0, request)
    session.step()
    v_cond, v_uncond = session.velocities()
    found = {"step0.v_cond": v_cond, "step0.v_uncond": v_uncond, "step1.z": session.z}
    return {f"c.{name}": relative_error(value, values[f"c.{name}"]) for name, value in found.items()}


def features(model: JanusFlow) -> float:
    stages = golden("stages")
    executor = model.runner.executor("encode_images", I=1)
    executor.inputs["pixels"].copy_(pixels(int(stages["und_enc.pixel_seed"]), 1, 3, 384, 384))
    executor.run()
    return relative_error(executor.outputs["hidden"][:, ::16], stages["und_enc.features"])


def tokens(model: JanusFlow) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the left-padded batch with an image a row: those found and those expected."""
    values = golden("understand")
    meta = values.metadata
    found = model.generate_ids(
        values["input_ids"],
        values["attention_mask"],
        pixels(int(meta["pixel_seed"]), 2, 1, 3, 384, 384),
        image_tokens=ImageTokens(start=int(meta["boi_id"]), image=int(meta["image_id"])),
        max_new_tokens=NEW_TOKENS,
        eos_token_id=int(meta["eos_id"]),
    )
    return found, values["generated"][:, :NEW_TOKENS]


def image() -> float:
    """The first of two."""
    values = golden("vae")
    decoded = thin_vae_model("triton").decode_latents(values["latent"][:1])
    return relative_error(decoded, values["image"][:1])


@contextmanager
def few_instructions() -> Iterator[None]:
    """Tiles of 128 queries and keys, few programs to share a row's keys, no check for overflow."""
    chosen, chosen_for_decoding = attention.configuration, decode_attention.configuration

    def configuration(*of: Any) -> tuple[dict[str, int], dict[str, Any]]:
        constants, options = chosen(*of)
        return constants | {"BLOCK_M": 128, "BLOCK_N": 128}, options

    with (
        patch.object(attention, "configuration", configuration),
        patch.object(decode_attention, "configuration", lambda *of: chosen_for_decoding(*of) | {"BLOCK_N": 128}),
        patch.object(decode_attention, "PROGRAMS", 64),
        patch.object(interpreter_builder, "options", replace(interpreter_builder.options, sanitize_overflow=False)),
    ):
        yield


def run() -> dict[str, Any]:
    model = thin_model(seeded_state_dict(golden_json("thin.manifest")), "float32", "exact", "triton")
    with triton_in("flow_prepare", "flow_step", "encode_images", "decode_latents") as ops:
        errors = flow_step(model) | {"features": features(model), "image": image()}
    with triton_in("decode_step") as decode_ops:
        found, expected = tokens(model)
    return {"errors": errors, "tokens": found.tolist(), "expected": expected.tolist(), "ops": ops | decode_ops}


if __name__ == "__main__":
    with few_instructions():
        Path(sys.argv[1]).write_text(json.dumps(run()))
