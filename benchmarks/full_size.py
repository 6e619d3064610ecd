"""Load a full-size JanusFlow with random weights from disk and time its stages: one JSON line.

    python benchmarks/full_size.py make FOLDER            # 4.1 GB of bf16 shards in the official layout
    python benchmarks/full_size.py run FOLDER [--dtype bfloat16] [--steps 3] [--tokens 16] [--threads N]
    python benchmarks/full_size.py compare FOLDER    # beside the same graphs on torch's implementations alone

Random weights draw noise, but every shape, layout and byte is that of the published checkpoint, and so is the time.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import all_ops
from flashjanus.pipeline import flow, text
from flashjanus.pipeline.buckets import EXACT, padded
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 2**30
PROMPT_TOKENS, CHAT_TOKENS = 40, 620


def config() -> dict[str, object]:
    """The published config.json: the thin one of the tests with its depths and vocabulary restored."""
    thin = json.loads((ROOT / "tests/golden/thin.config.json").read_text())
    thin["language_config"].update(intermediate_size=5632, num_hidden_layers=24, vocab_size=102400)
    thin["vision_und_enc_config"]["params"]["select_layer"] = -1
    return {**thin, "torch_dtype": "bfloat16"}


def make(folder: Path) -> None:
    """Write config.json, shards and their index; the index last, so that an interrupted run leaves no checkpoint."""
    manifest = json.loads((ROOT / "tests/golden/full.manifest.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=1))
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, shape in manifest.items():
        scale = 1.0 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator).mul_(scale)
        if len(shape) == 1 and name.endswith("weight"):
            tensor.mul_(0.1).add_(1)
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    index = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file)
        index.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def seconds(runs: Sequence[Callable[[], object]], repeats: int, warmup: int = 1) -> list[dict[str, float]]:
    """Times of each of `runs`, taken in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(warmup + repeats):
        for i, run in enumerate(runs if turn % 2 else runs[::-1]):
            start = time.perf_counter()
            run()
            times[i if turn % 2 else len(runs) - 1 - i].append(time.perf_counter() - start)
    kept = [of_run[warmup:] for of_run in times]
    return [{"median_s": statistics.median(t), "min_s": min(t), "max_s": max(t), "runs": repeats} for t in kept]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def run(folder: Path, dtype: str, steps: int, tokens: int) -> dict[str, object]:
    before = peak_gb()
    start = time.perf_counter()
    model = JanusFlow.from_pretrained(folder, dtype=dtype)
    out: dict[str, object] = {"engine": "flashjanus", "dtype": dtype, "threads": torch.get_num_threads()}
    out["load_s"] = time.perf_counter() - start
    weights = sum(w.nbytes for w in {id(w): w for w in model.runner.weights.values()}.values())
    out["weights_gb"] = weights / 1e9
    out["load_peak_over_weights"] = (peak_gb() - before) * 1e9 / weights

    for name, (call, repeats) in stages(model, steps, tokens).items():
        (out[name],) = seconds([call], repeats)
    out["peak_gb"] = peak_gb()
    return out


def compare(folder: Path, dtype: str, steps: int, tokens: int) -> dict[str, object]:
    """What the plan chooses and torch's implementations alone, run by run in turns, and the ratio of their medians."""
    torch_alone = dict.fromkeys(all_ops(), "torch")
    chosen, alone = (
        stages(JanusFlow.from_pretrained(folder, dtype=dtype, implementations=implementations), steps, tokens)
        for implementations in (None, torch_alone)
    )
    out: dict[str, object] = {}
    for name, (call, repeats) in chosen.items():
        ours, theirs = seconds([call, alone[name][0]], repeats)
        out[name] = {"chosen": ours, "torch": theirs, "ratio": theirs["median_s"] / ours["median_s"]}
    return {"dtype": dtype, "threads": torch.get_num_threads(), "stages": out}


def stages(model: JanusFlow, steps: int, tokens: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, in order, and how often."""
    ids, runner = tuple(range(5, 5 + PROMPT_TOKENS)), model.runner
    noise = torch.randn(4, 48, 48, generator=torch.Generator().manual_seed(0))
    capacity = padded(PROMPT_TOKENS, EXACT.prompt_tokens)
    prepared = flow.Prepared(runner, 1, 1, capacity, 30)
    prepared.run([(ids, 30)])
    session = flow.FlowSession(runner, 1, 1, capacity, 30)
    session.join(prepared, 0, 0, flow.FlowRequest(ids, 30, 2.0, noise))
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(1))
    room = padded(CHAT_TOKENS, EXACT.prompt_tokens)
    chat = text.TextSession(runner, 1, room, room + 128, 1, tokens + 8)
    question = [text.TextRequest(tuple(range(5, 5 + CHAT_TOKENS)))]
    return {
        "flow_prepare": (lambda: prepared.run([(ids, 30)]), 3),
        "flow_step": (session.step, steps),
        "encode_images": (lambda: text.encode_images(runner, pixels), 5),
        "prefill_620": (lambda: chat.start(question, None), 3),
        "decode_token": (chat.step, tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "run", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="timed flow steps, one image with guidance")
    parser.add_argument("--tokens", type=int, default=16, help="timed decoded tokens, one row")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.action == "make":
        make(args.folder)
    else:
        measure = run if args.action == "run" else compare
        print(json.dumps({**measure(args.folder, args.dtype, args.steps, args.tokens), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
