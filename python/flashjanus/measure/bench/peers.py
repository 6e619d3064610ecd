"""Times other implementations in turns with ours: the official code in its own process, transformers in this one.

Neither is a dependency, and none of their code is here; diffusers is in vae_peer.py. The official timings come from a
script that runs a checkout of deepseek-ai/Janus on random weights and prints one JSON line; each round starts a new
process. The script knows the published sizes ("full") and the thin ones. The official step has no `prepare` before
it: each step computes the prompt and the time token again.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashjanus.api.tensor_model import TensorModel
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.errors import InputError, PeerError
from flashjanus.measure.timing import Case, Clock

from .models import configs, sibling
from .process import answer, check_python
from .stages import CHAT_TOKENS, TOKENS, Stages

UNDERSTANDING = {"SigLIP": "encode", "prefill": "prefill_620", "token": "decode_token"}
"""The script's names of our stages."""


@dataclass(frozen=True)
class Official:
    """The official code. `python` is an interpreter with its dependencies, `size` the script's name for the model."""

    script: Path
    repo: Path
    python: Path
    size: str
    dtype: str
    device: str
    compiled: bool = False

    @property
    def name(self) -> str:
        return "official-compiled" if self.compiled else "official"

    @staticmethod
    def of(model: TensorModel, script: str, repo: str, python: str, compiled: bool) -> Official:
        """Raises InputError if a file is missing or the script has no model of these sizes."""
        for option, path, ok in (
            ("--official-script", script, os.path.isfile(script)),
            ("--official-repo", repo, os.path.isdir(os.path.join(repo, "janus"))),
        ):
            if not ok:
                what = "a checkout of deepseek-ai/Janus" if option == "--official-repo" else "an existing file"
                raise InputError(f"{option} {path}: expected {what}")
        check_python(python)
        sizes = [s for s in ("full", "thin") if JanusFlowConfig.from_dict(configs(s)[0]) == model.config]
        if not sizes:
            raise InputError(
                f"--peer official: expected a model of the published sizes or the thin one, got {model.name}; use "
                "--random-weights full, --random-weights thin, or the published checkpoint"
            )
        dtype = str(model.dtype).removeprefix("torch.")
        device = "cpu" if model.device.type == "cpu" else "cuda"
        return Official(Path(script), Path(repo), Path(python), sizes[0], dtype, device, compiled)

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        """The median of each case: the script reports nothing else."""
        asked: dict[int, dict[str, Any]] = {}
        for case in cases:
            sizes = dict(case.sizes)
            if case.stage == "step":
                given = ["--prompt-tokens", case["prompt_tokens"]]
                yield case, [self._ask("step", case["rows"], repeats, *given)["step"]["median_s"]]
            elif case.stage == "latents":
                given = ["--prompt-tokens", case["prompt_tokens"], "--steps", case["steps"]]
                yield case, [self._ask("generate", case["rows"], repeats, *given)["generate"]["median_s"]]
            elif case.stage in UNDERSTANDING and sizes.get("chat_tokens", CHAT_TOKENS) == CHAT_TOKENS:
                rows = case["rows"]
                if rows not in asked:
                    asked[rows] = self._ask("understand", rows, repeats, "--new-tokens", TOKENS * repeats)
                yield case, [asked[rows][UNDERSTANDING[case.stage]]["median_s"]]

    def _ask(self, what: str, rows: int, repeats: int, *given: object) -> dict[str, Any]:
        """Run the script once. Raises PeerError."""
        command: list[str] = [str(self.python), str(self.script), "--repo", str(self.repo), "--what", what]
        command += ["--size", self.size, "--dtype", self.dtype, "--device", self.device]
        command += ["--batch", str(rows), "--repeats", str(repeats), *map(str, given)]
        command += ["--compile"] if self.compiled else []
        found: dict[str, Any] = answer(self.name, command)
        return found


class Transformers:
    """transformers' own generate with a static cache, on the language model's weights; its tensors are views of ours.

    prefill: the time from the call to the first token; token: the time between two tokens.
    """

    name = "transformers"

    def __init__(self, stages: Stages, clock: Clock = time.perf_counter) -> None:
        self.stages, self.clock = stages, clock
        try:
            # Not an import statement: the engine runs the model itself, and only a benchmark needs transformers.
            self.library = importlib.import_module("transformers")
        except ImportError as error:
            raise PeerError(f"transformers: cannot be imported ({error}); pip install transformers") from None
        self.model = self._build()

    def _build(self) -> Any:
        model, library = self.stages.model, self.library
        c = model.config.language
        config = library.LlamaConfig(
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            num_hidden_layers=c.num_hidden_layers,
            vocab_size=c.vocab_size,
            max_position_embeddings=c.max_position_embeddings,
            rms_norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_theta,
            tie_word_embeddings=c.tie_word_embeddings,
        )
        with torch.device("meta"):
            made = library.LlamaForCausalLM(config)
        made.load_state_dict(language_state(model), assign=True)
        made.model.rotary_emb = type(made.model.rotary_emb)(config).to(self.stages.device)
        return made.eval()

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        timed: dict[tuple[int, int], list[float]] = {}
        for case in cases:
            if case.stage not in ("prefill", "token"):
                continue
            sizes = case["rows"], case["chat_tokens"]
            if sizes not in timed:
                self._generate(*sizes, 2)
                timed[sizes] = self._generate(*sizes, 1 + TOKENS * repeats)
            yield case, timed[sizes][:1] if case.stage == "prefill" else timed[sizes][1:]

    def _generate(self, rows: int, prompt: int, tokens: int) -> list[float]:
        """Seconds to the first token, and seconds between tokens."""
        marks: list[float] = []

        def mark(ids: torch.Tensor, scores: Any, **given: Any) -> torch.Tensor:
            self.stages.synchronize()
            marks.append(self.clock())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        ids = torch.tensor([self.stages.ids(prompt)] * rows, device=self.stages.device)
        start = self.clock()
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation="static",
                stopping_criteria=[mark],
            )
        return [now - before for before, now in zip([start, *marks], marks, strict=False)]


def language_state(model: TensorModel) -> dict[str, torch.Tensor]:
    """Our language model's weights under their official names without the prefix. Matrices are views of ours, or
    copies where ours are stored in tiles."""
    c, weights, dtype = model.config.language, sibling(model, {}).runner.weights, model.dtype
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    state = {
        "model.embed_tokens.weight": weights["llm.embed"],
        "model.norm.weight": weights["llm.norm"].to(dtype),
        "lm_head.weight": weights["llm.head"],
    }
    for i in range(c.num_hidden_layers):
        at, of = f"model.layers.{i}", f"llm.{i}"
        state[f"{at}.input_layernorm.weight"] = weights[f"{of}.norm1"].to(dtype)
        state[f"{at}.post_attention_layernorm.weight"] = weights[f"{of}.norm2"].to(dtype)
        stacked = {
            "self_attn": (weights[f"{of}.qkv"], {"q": q, "k": kv, "v": kv}),
            "mlp": (weights[f"{of}.gate_up"], {"gate": c.intermediate_size, "up": c.intermediate_size}),
        }
        for part, (matrix, rows) in stacked.items():
            pieces = zip(rows, torch.split(matrix, list(rows.values())), strict=True)
            state |= {f"{at}.{part}.{name}_proj.weight": piece for name, piece in pieces}
        state[f"{at}.self_attn.o_proj.weight"] = weights[f"{of}.o"]
        state[f"{at}.mlp.down_proj.weight"] = weights[f"{of}.down"]
    return state
