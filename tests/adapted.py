"""Models of a small checkpoint with several low-rank adapters, and the same with the adapters merged by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.execution.text import ImageTokens
from small_adapter import merged, write_adapter
from small_model import FEATURES, IMAGE, LATENT, START, normal, prompt, small_config, small_state

CONFIG = small_config()
LANGUAGE = JanusFlowConfig.from_dict(CONFIG).language
STATE = small_state(CONFIG)
TOKENS = ImageTokens(START, IMAGE)
PROMPTS, NOISE = [prompt(n, 4 + 5 * n) for n in range(4)], normal(1, 4, *LATENT)
SETTINGS: Mapping[str, dict[str, Any]] = {
    "all": dict(rank=4),
    "some": dict(rank=9, seed=1, targets=("q_proj", "v_proj", "down_proj"), use_rslora=True, lora_alpha=2.0),
    "mixed": dict(rank=2, seed=2, ranks={"k_proj": 5, "gate_proj": 1}, of="model."),
}


def of(state: Mapping[str, torch.Tensor], **options: Any) -> JanusFlow:
    return JanusFlow.from_state_dict(CONFIG, state, **{"device": "cpu", "dtype": "float32"} | options)


@dataclass
class Adapted:
    """A model with all of SETTINGS loaded, the same without room for any, and by name weights merged by hand."""

    model: JanusFlow
    plain: JanusFlow
    folders: dict[str, Path]
    states: dict[str, dict[str, torch.Tensor]]

    def by_hand(self, name: str | None) -> JanusFlow:
        return self.plain if name is None else of(self.states[name])


def adapted(folder: Path) -> Adapted:
    """Write the adapters of SETTINGS into folders of their names, and make the models."""
    scales = {"all": 1.0, "some": 2.0 / 3.0, "mixed": 1.0}
    patterns = dict(
        rank_pattern={"k_proj": 5, r"layers\.\d+\.mlp\.gate_proj": 1}, alpha_pattern={"k_proj": 5, "mlp.gate_proj": 1}
    )
    found = Adapted(of(STATE), of(STATE), {}, {})
    found.model.reserve_adapters(4, 16)
    for name, settings in SETTINGS.items():
        more = patterns if name == "mixed" else {}
        tensors = write_adapter(folder / name, LANGUAGE, **settings, **more)
        if name == "mixed":  # of a language model alone
            tensors = {at.replace(".model.model.", ".model.language_model.model."): t for at, t in tensors.items()}
        found.folders[name] = folder / name
        found.states[name] = merged(STATE, tensors, scales[name])
        found.model.load_adapter(folder / name)
    return found


def ids(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, the first of which has an image."""
    block = [START, *[IMAGE] * FEATURES]
    rows = [[0, *block, *prompt(9, lengths[0])], *(prompt(n, length) for n, length in enumerate(lengths[1:]))]
    width = max(map(len, rows))
    padded = [[0] * (width - len(row)) + row for row in rows]
    return torch.tensor(padded), torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
