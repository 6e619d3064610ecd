"""The cost of a low-rank adapter on one row of four in a flow step: three kinds of step take turns in one process.

    python benchmarks/adapters.py [--layers 2] [--rounds 30] [--rank 16] [--dtype float32] [--small] [--json FILE]

"plain" has no room for adapters. "room" has room, and no row names an adapter. "one of four" has one on the first row,
in both branches of its guidance. A layer has the published model's sizes, or with --small those of the built-in model.
Adapters add to the part of a step that grows with the number of layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from flashjanus.checkpoint.adapters import AdapterFiles, Factors, linears
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.sampling.schedule import Sampler

ROWS, STEPS, PROMPT = 4, 128, 32


def config(layers: int, small: bool) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((builtin_folder() / "config.json").read_text())
    language = found["language_config"]
    language |= {"num_hidden_layers": layers or (language["num_hidden_layers"] if small else 2)}
    if small:
        return found
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16}
    language |= sizes | {"max_position_embeddings": 1024}
    found["latent_size"] = 48
    for part in ("vision_gen_enc_config", "vision_gen_dec_config"):
        found[part]["params"] |= {"block_out_channels": [768], "hidden_size": 2048}
    found["vision_gen_dec_config"]["params"]["in_channels"] = 768
    return found


def state(parsed: JanusFlowConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sources = [source for target in weight_layout(parsed) for source in target.sources]
    return {s.names[0]: torch.randn(s.shapes[0], generator=generator) / max(1, s.shapes[0][-1]) ** 0.5 for s in sources}


def adapter(parsed: JanusFlowConfig, rank: int) -> AdapterFiles:
    generator = torch.Generator().manual_seed(1)
    factors = {
        (layer, projection): Factors(
            torch.randn(rank, linear.columns, generator=generator) / linear.columns**0.5,
            torch.randn(rows, rank, generator=generator) / rank**0.5,
            1.0,
        )
        for layer in range(parsed.language.num_hidden_layers)
        for linear in linears(parsed.language).values()
        for projection, rows in linear.rows.items()
    }
    return AdapterFiles("random", factors)


def session(model: JanusFlow, named: Adapter | None) -> FlowSession:
    runner, made = model.runner, FlowSession(model.runner, ROWS, ROWS, PROMPT, STEPS)
    shape = (runner.config.gen_encoder.input_channels, runner.config.latent_size, runner.config.latent_size)
    prepared = Prepared(runner, 1, 1, PROMPT, STEPS)
    for row in range(ROWS):
        z = torch.randn(shape, generator=torch.Generator().manual_seed(row))
        request = FlowRequest(tuple(range(1, PROMPT + 1)), Sampler(STEPS, 2.0), z, named if row == 0 else None)
        prepared.run([request.timed_prompt], request.adapter)
        made.join(prepared.prefix(0), row, request)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parsed = JanusFlowConfig.from_dict(config(args.layers, args.small))
    options: dict[str, Any] = dict(device="cpu", dtype=args.dtype, quantization=args.quantization)
    plain, roomy = (
        JanusFlow.from_state_dict(config(args.layers, args.small), state(parsed), **options) for _ in range(2)
    )
    roomy.reserve_adapters(slots=4, rank=args.rank)
    named = roomy.runner.load_adapter(adapter(parsed, args.rank), "one")
    steps: dict[str, Callable[[], None]] = {
        "plain": session(plain, None).step,
        "room": session(roomy, None).step,
        "one of four": session(roomy, named).step,
    }
    clocks = {"seconds": time.perf_counter, "CPU seconds": time.process_time}
    samples: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in steps} for clock in clocks}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            begun = [clock() for clock in clocks.values()]
            step()
            for (which, clock), before in zip(clocks.items(), begun, strict=True):
                if turn:  # the first warms up
                    samples[which][name].append(clock() - before)
    for which, found in samples.items():
        print(f"{which}, median of {args.rounds}:")
        for name, times in found.items():
            more = statistics.median(times) / statistics.median(found["plain"]) - 1
            print(f"  {name:12} {statistics.median(times):9.4f}  {100 * more:+6.2f} %")
    if args.json is not None:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, **samples}, indent=2))


if __name__ == "__main__":
    main()
