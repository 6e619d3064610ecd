"""Handles tensor names that other programs have changed: additions are removed, or reported as the cause.

DistributedDataParallel, torch.compile, FSDP, PEFT and trainers add words before or inside the official names. Trainers
also save a state dict as one entry among others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from flashjanus.errors import CheckpointError

OFFICIAL = (
    *("language_model.", "vision_und_enc_", "vision_gen_enc_", "vision_gen_dec_", "beg_of_und_embed"),
    *("decoder.", "encoder.", "post_quant_conv.", "quant_conv."),
)
"""How tensor names begin in a JanusFlow model and in a VAE."""
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Words that torch's wrappers insert anywhere in a name, and that occur nowhere else."""
_ADAPTERS = ("lora_", "base_layer", "modules_to_save", "hada_", "lokr_", "ia3_", "oft_", "vera_", "adaption_prompt")
"""Beginnings of PEFT's words, which no name in a merged model contains."""
_ENTRIES = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers save a model's state dict."""
MERGE = "call merge_and_unload() on the PEFT model and save the model that it returns"
HEAD = "language_model.lm_head.weight"


def official_names(stored: Iterable[str]) -> dict[str, str]:
    """Official name -> stored name, without the words of wrappers and without a prefix common to all names.

    Names that are official already, or belong to something else, map to themselves.
    """
    names = list(stored)
    if all(name.startswith(OFFICIAL) and not any(word in name for word in _WRAPPERS) for name in names):
        return dict(zip(names, names, strict=True))
    bare = {".".join(word for word in name.split(".") if word not in _WRAPPERS): name for name in names}
    if len(bare) < len(names):  # two names would become the same
        return {name: name for name in names}
    common = [p for p in _prefixes(bare) if all(name.startswith(p) for name in bare)]
    return {name.removeprefix(common[0]) if common else name: at for name, at in bare.items()}


def foreign_names(names: Iterable[str]) -> str | None:
    """The one cause for which tensors with these names fit no layout, and what to do; or None."""
    names = list(names)
    adapted = [name for name in names if any(word.startswith(_ADAPTERS) for word in name.split("."))]
    if adapted:
        return (
            f"{len(adapted)} of {len(names)} tensors belong to a PEFT adapter that is not merged ({adapted[0]}); "
            f"{MERGE}"
        )
    for prefix, count in _prefixes(names).items():
        if prefix and len(names) <= 2 * count < 2 * len(names):
            other = next(name for name in names if not name.startswith(prefix))
            return (
                f'{count} of {len(names)} names begin with "{prefix}", and others, such as {other}, do not; expected '
                "official names: remove the prefix, and leave out tensors that do not belong to the model"
            )
    return None


def _prefixes(names: Iterable[str]) -> Counter[str]:
    """The prefixes of official names ("" included), with their counts."""
    found: Counter[str] = Counter()
    for name in names:
        starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        found.update([name[:i] for i in starts if name.startswith(OFFICIAL, i)])
    return found


def state_dict_in(data: object, label: str) -> Mapping[str, torch.Tensor]:
    """The state dict that `data` is, or that it holds under one of the keys trainers use. Raises CheckpointError."""
    for held in (data, *(data.get(entry) for entry in _ENTRIES)) if isinstance(data, Mapping) else ():
        if isinstance(held, Mapping) and held and all(isinstance(tensor, torch.Tensor) for tensor in held.values()):
            return held
    got = type(data).__name__
    if isinstance(data, Mapping):
        got += f" with the keys {', '.join(str(key) for key in list(data)[:5])}" if data else " that is empty"
        if {"state", "param_groups"} <= data.keys():
            got = "the state of an optimizer; give the file of the model's own weights"
    raise CheckpointError(f"{label}: expected a state dict of tensors, got {got}")


def with_tied_head(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """`config` with a top-level tie_word_embeddings moved into its language_config, if no head is stored.

    A stored head is used, as in the official code, where the top-level key ties nothing in the language model.
    """
    if config.get("tie_word_embeddings") is not True or HEAD in names:
        return config
    language = config.get("language_config", {})
    if not isinstance(language, Mapping):
        return config
    return {**config, "language_config": {**language, "tie_word_embeddings": True}}
