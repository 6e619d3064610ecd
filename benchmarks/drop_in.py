"""Time the official examples on the official code and on `flashjanus.compat.janusflow`, in turns in one run.

    python benchmarks/drop_in.py --official-repo JANUS --official-script official.py --official-python PYTHON

JANUS is a checkout of deepseek-ai/Janus, official.py the script that builds its model at the published sizes, and
PYTHON the interpreter of an environment with its dependencies. Both models get the same seeded weights in bfloat16, and
the same functions run on both: `generate` is the README's loop over Euler steps, without the VAE, which belongs to the
caller; `understand` is the README's question: the image encoder, then `generate` of the language model. Each
implementation has a process of its own, which waits while the other runs; a round times both. Prints one JSON object:
the seconds of every round, the ratios of the medians, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch

PROMPT_TOKENS, QUESTION_TOKENS = 40, 40
"""Tokens of a drawing's prompt, and of a question, besides the 578 tokens of its image."""
CLOCKS = ("seconds", "cpu_seconds")
"""Wall time, and CPU time of all threads of the process, which other processes on the machine disturb less."""
SIDE, FEATURES, IMAGE_TOKENS = 384, 576, 576


def seed(model: torch.nn.Module) -> None:
    """Set parameters of the same name to the same values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if "channelwise_norm" in name:
                parameter.normal_(0, 0.3, generator=generator)
            elif parameter.dim() == 1:
                parameter.normal_(float(name.endswith("weight")), 0.05, generator=generator)
            elif any(part in name for part in ("embed_tokens", "beg_of_und", "pos_embed")):
                parameter.normal_(0, 0.3, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


@torch.inference_mode()
def generate(vl_gpt: Any, turn: int, images: int, steps: int, guidance: float = 2.0) -> torch.Tensor:
    """Latents (images, 4, 48, 48) by the README's loop. Each turn has its own prompt and noise."""
    device, dtype = vl_gpt.device, vl_gpt.dtype
    ids = (torch.arange(PROMPT_TOKENS + 1) * 7 + turn) % 1000
    tokens = torch.stack([ids] * 2 * images).to(device)
    tokens[images:, 1:] = 2
    inputs_embeds = vl_gpt.language_model.get_input_embeddings()(tokens)[:, :-1, :]
    z = torch.randn((images, 4, 48, 48), dtype=dtype, generator=torch.Generator().manual_seed(turn)).to(device)
    dt = torch.zeros_like(z) + 1.0 / steps
    attention_mask = torch.ones((2 * images, inputs_embeds.shape[1] + 1 + IMAGE_TOKENS)).to(device)
    attention_mask[images:, 1 : inputs_embeds.shape[1]] = 0
    attention_mask = attention_mask.int()
    past_key_values: Any = None
    for step in range(steps):
        z_input = torch.cat([z, z], dim=0)
        t = torch.tensor([step / steps * 1000.0] * z_input.shape[0]).to(dt)
        z_emb, t_emb, hs = vl_gpt.vision_gen_enc_model(z_input, t)
        z_emb = z_emb.view(z_emb.shape[0], z_emb.shape[1], -1).permute(0, 2, 1)
        z_emb = vl_gpt.vision_gen_enc_aligner(z_emb)
        llm_emb = torch.cat([inputs_embeds, t_emb.unsqueeze(1), z_emb], dim=1)
        outputs = vl_gpt.language_model.model(
            inputs_embeds=llm_emb, use_cache=True, attention_mask=attention_mask, past_key_values=past_key_values
        )
        past_key_values = ()  # what the README's loop makes of the first step's
        hidden_states = vl_gpt.vision_gen_dec_aligner_norm(outputs.last_hidden_state[:, -IMAGE_TOKENS:, :])
        hidden_states = vl_gpt.vision_gen_dec_aligner(hidden_states)
        hidden_states = hidden_states.reshape(z_emb.shape[0], 24, 24, 768).permute(0, 3, 1, 2)
        v_cond, v_uncond = torch.chunk(vl_gpt.vision_gen_dec_model(hidden_states, hs, t_emb), 2)
        z = z + dt * (guidance * v_cond - (guidance - 1.0) * v_uncond)
    return z.float()


def understand(vl_gpt: Any, turn: int, new_tokens: int) -> torch.Tensor:
    """New ids (1, new_tokens) after an image and a question of the turn, as in the README."""
    ids = (torch.arange(FEATURES + 2 + QUESTION_TOKENS)[None] * 7 + turn) % 1000
    places = torch.zeros_like(ids, dtype=torch.bool)
    places[:, 10 : 11 + FEATURES] = True
    noise = torch.randn(1, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(turn))
    inputs_embeds = vl_gpt.prepare_inputs_embeds(
        input_ids=ids,
        pixel_values=noise.to(vl_gpt.dtype),
        images_seq_mask=places,
        images_emb_mask=torch.ones(1, 1, FEATURES + 1, dtype=torch.bool),
    )
    out: torch.Tensor = vl_gpt.language_model.generate(
        inputs_embeds=inputs_embeds,
        attention_mask=torch.ones_like(ids),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=None,
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
    )
    return out


def official(args: argparse.Namespace, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return the official model, built by its script."""
    spec = importlib.util.spec_from_file_location("official", args.official_script)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sys.path.insert(0, args.official_repo)
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.insert(0, script._TorchvisionStandIn())
    model = script.build(args.size, dtype, "cpu")
    model.language_model.generation_config.eos_token_id = None
    return model


def ours(args: argparse.Namespace) -> Any:
    from flashjanus.compat import checkpoints
    from flashjanus.compat.janusflow import MultiModalityCausalLM
    from flashjanus.measure.bench.models import configs

    model = checkpoints.empty(MultiModalityCausalLM, configs(args.size)[0])
    return model.to(torch.bfloat16).to_empty(device="cpu").eval()


def work(args: argparse.Namespace) -> None:
    """Run a worker: for each line on stdin, run that example and print its seconds and its result."""
    model = official(args) if args.worker == "official" else ours(args)
    seed(model)
    print(json.dumps({"ready": True}), flush=True)
    for turn, line in enumerate(sys.stdin):
        begun, worked = time.perf_counter(), time.process_time()
        if line.strip() == "generate":
            result = generate(model, turn, args.images, args.steps)
        else:
            result = understand(model, turn, args.new_tokens)
        spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - worked}
        print(json.dumps({**spent, "result": result.flatten().tolist()}), flush=True)


class Worker:
    """The process that calls `work`, seen from its parent."""

    def __init__(self, name: str, python: str, args: argparse.Namespace) -> None:
        own = [python, __file__, "--worker", name]
        for option in ("size", "images", "steps", "new_tokens", "official_repo", "official_script"):
            own += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        self.name = name
        self.process = subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self.name}: ended without an answer; see above")

    def run(self, example: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{example}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official-repo", required=True, help="a checkout of deepseek-ai/Janus")
    parser.add_argument("--official-script", required=True, help="official.py")
    parser.add_argument("--official-python", help="the interpreter that has its dependencies")
    parser.add_argument("--size", choices=["full", "thin"], default="full")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="Euler steps; the README has 30")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", default="generate,understand")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--worker", choices=["official", "flashjanus"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    if not args.official_python or not Path(args.official_script).is_file():
        parser.error("expected --official-python, and --official-script an existing file")
    workers = [Worker("flashjanus", sys.executable, args), Worker("official", args.official_python, args)]
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **{name: getattr(args, name) for name in ("size", "images", "steps", "new_tokens", "rounds")},
    }
    for example in args.examples.split(","):
        results = {worker.name: worker.run(example)["result"] for worker in workers}  # also the warm-up
        # nothing is repeated: prompts, questions and images are new in each turn, so that no prefix is found again
        rounds: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
        for turn in range(args.rounds):
            for worker in workers[:: 1 if turn % 2 else -1]:
                rounds[worker.name].append(worker.run(example))
        times = {clock: {name: [r[clock] for r in own] for name, own in rounds.items()} for clock in CLOCKS}
        medians = {clock: {name: statistics.median(s) for name, s in own.items()} for clock, own in times.items()}
        found[example] = {
            **times,
            "official_over_flashjanus": {c: m["official"] / m["flashjanus"] for c, m in medians.items()},
            **apart(example, *(torch.tensor(results[worker.name]) for worker in workers)),
        }
        print(json.dumps({example: found[example]}), file=sys.stderr, flush=True)
    for worker in workers:
        worker.close()
    text = json.dumps(found, indent=1)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")


def apart(example: str, got: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Both round to bfloat16, each in its own order: latents are close, and greedy tokens agree for a while."""
    if example == "generate":
        return {"relative_difference": float((got - expected).norm() / expected.norm())}
    return {"tokens_alike": int((got == expected).int().cumprod(0).sum()), "tokens": len(expected)}


if __name__ == "__main__":
    main()
