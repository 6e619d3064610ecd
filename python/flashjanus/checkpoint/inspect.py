"""Describes a checkpoint without reading its weights. Problems are part of the description."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flashjanus.checkpoint.files import TEXT_FILES, Checkpoint
from flashjanus.checkpoint.hub import is_hub_id
from flashjanus.checkpoint.layout import Layout, weight_layout
from flashjanus.checkpoint.load import mismatch
from flashjanus.checkpoint.sources import TensorInfo, TensorSource
from flashjanus.checkpoint.vae_layout import vae_layout
from flashjanus.disk.reading import read_json
from flashjanus.errors import CheckpointError

PARTS = {
    "language_model.": "language model",
    "vision_und_enc_model.": "understanding encoder",
    "vision_gen_enc_model.": "generation encoder",
    "vision_gen_dec_model.": "generation decoder",
    "": "aligners and others",
}
TAGS = ("image_tag", "image_gen_tag", "image_start_tag", "image_end_tag")

T = TypeVar("T")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """JSON-ready description: sizes, parameters and bytes per part, dtypes, files, tags, VAE, problems (strings).

    For a checkpoint that `Checkpoint.open` refuses, pass `Checkpoint.locate(...)`: the reasons become problems.
    """
    problems: list[str] = []
    config_dict = _try(lambda: checkpoint.config_dict, problems)
    config = _try(lambda: checkpoint.config, problems) if config_dict is not None else None
    weights = _try(lambda: checkpoint.weights, problems)
    texts = {
        name: _try(partial(read_json, path, CheckpointError), problems) or {}
        for name, path in checkpoint.text_files.items()
    }
    described: dict[str, Any] = {
        "source": checkpoint.source,
        "folder": str(checkpoint.folder),
        "model_type": (config_dict or {}).get("model_type"),
        "sizes": asdict(config) if config is not None else None,
        "parts": _parts(weights.names(), PARTS) if weights is not None else [],
        "dtypes": _dtypes(weights.names()) if weights is not None else {},
        "files": [_file(path) for path in weights.paths] if weights is not None else [],
        "text_files": {name: name in checkpoint.text_files for name in TEXT_FILES},
        "tags": _tags(texts),
        "vae": None,
    }
    if config is not None:
        described["sizes"]["num_image_tokens"] = config.num_image_tokens
        described["sizes"]["num_understanding_tokens"] = config.num_understanding_tokens
        if weights is not None:
            _check(weight_layout(config), weights, problems)
    described["vae"] = _vae(checkpoint, problems, has_config=config is not None)
    if "tokenizer.json" not in checkpoint.text_files:
        problems.append(f"{checkpoint.folder}: no tokenizer.json; prompts cannot be read")
    described["problems"] = problems
    return described


def format_description(described: Mapping[str, Any]) -> str:
    """The result of `describe` as text for a terminal."""
    lines = [f"{described['source']}  ({described['model_type'] or 'no model_type'})"]
    sizes = described["sizes"]
    if sizes:
        llm, vit, enc, dec = (sizes[key] for key in ("language", "understanding", "gen_encoder", "gen_decoder"))
        lines += [
            f"  language model     {llm['num_hidden_layers']} layers, width {llm['hidden_size']}, "
            f"{llm['num_attention_heads']} heads x {llm['head_dim']} ({llm['num_key_value_heads']} key/value), "
            f"FFN {llm['intermediate_size']}, vocabulary {llm['vocab_size']}",
            f"  understanding      {vit['layers']} blocks, width {vit['width']}, {vit['heads']} heads, "
            f"{vit['image_size']} px / {vit['patch_size']} = {sizes['num_understanding_tokens']} tokens",
            f"  generation         {enc['channels']} + {dec['in_channels']} channels, latent {enc['input_channels']} x "
            f"{sizes['latent_size']} x {sizes['latent_size']}, {sizes['num_image_tokens']} tokens, "
            f"{sizes['image_attention']} attention",
        ]
    if described["parts"]:
        lines += ["", *_table(described["parts"])]
        lines.append("  stored as " + ", ".join(f"{dtype} ({count})" for dtype, count in described["dtypes"].items()))
    if described["files"]:
        lines += ["", *(f"  {item['bytes'] / 1e6:10.1f} MB  {item['name']}" for item in described["files"])]
    vae = described["vae"]
    lines.append("")
    if vae is None:
        lines.append("  VAE                none: images cannot be decoded; pass vae= or --vae")
    elif "parts" in vae:
        lines.append(f"  VAE                {vae['folder']}: x{vae['scale']}, scaling factor {vae['scaling_factor']}")
        lines += _table(vae["parts"])
    else:
        lines.append(
            f"  VAE                {vae['source']}" + ("" if vae["is_local"] else " (fetched when first used)")
        )
    present = [name for name, there in described["text_files"].items() if there]
    lines.append(f"  text files         {', '.join(present) or 'none'}")
    for name, tag in described["tags"].items():
        state = "in the tokenizer" if tag["in_tokenizer"] else "added when loading"
        lines.append(f"  {name:<18} {tag['text']} ({state})")
    lines.append("")
    lines.append("  no problems" if not described["problems"] else "  problems:")
    lines += [f"  - {problem}" for problem in described["problems"]]
    return "\n".join(lines)


def _try(get: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return get()
    except CheckpointError as error:
        problems.append(str(error))
        return None


def _check(layout: Layout, weights: TensorSource, problems: list[str]) -> None:
    problem = mismatch(layout, weights)
    if problem is not None:
        problems.append(problem)


def _parts(names: Mapping[str, TensorInfo], prefixes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Tensors, parameters and bytes, grouped by the first prefix that matches."""
    parts = {title: {"part": title, "tensors": 0, "parameters": 0, "bytes": 0} for title in prefixes.values()}
    for name, info in names.items():
        part = parts[next(title for prefix, title in prefixes.items() if name.startswith(prefix))]
        count = 1
        for size in info.shape:
            count *= size
        for key, value in (("tensors", 1), ("parameters", count), ("bytes", info.nbytes)):
            part[key] += value  # type: ignore[operator]
    return [part for part in parts.values() if part["tensors"]]


def _dtypes(names: Mapping[str, TensorInfo]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for info in names.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + 1
    return counts


def _file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size}


def _tags(texts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The processor's tags, each with its text and whether tokenizer.json already holds it."""
    processor, tokenizer = texts.get("processor_config.json", {}), texts.get("tokenizer.json", {})
    added = tokenizer.get("added_tokens")
    added = added if isinstance(added, list) else []
    known = {str(token.get("content")) for token in added if isinstance(token, dict)}
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    known |= set(vocab) if isinstance(vocab, dict) else set()
    tags = {name: processor[name] for name in TAGS if isinstance(processor.get(name), str)}
    return {name: {"text": text, "in_tokenizer": text in known} for name, text in tags.items()}


def _vae(checkpoint: Checkpoint, problems: list[str], *, has_config: bool) -> dict[str, Any] | None:
    """None without a VAE; a VAE on the hub is named but not downloaded."""
    if checkpoint.vae_source is None:
        return None
    is_local = not is_hub_id(str(checkpoint.vae_source)) or os.path.exists(checkpoint.vae_source)
    described: dict[str, Any] = {"source": str(checkpoint.vae_source), "is_local": is_local}
    files = _try(lambda: checkpoint.vae, problems) if is_local else None
    if files is None:
        return described
    config, weights = _try(lambda: files.config, problems), _try(lambda: files.weights, problems)
    if config is not None and has_config:
        _try(lambda: config.check_fits(checkpoint.config), problems)
    if config is not None and weights is not None:
        _check(vae_layout(config), weights, problems)
        prefixes = {"decoder.": "VAE decoder", "encoder.": "VAE encoder", "": "VAE latent convolutions"}
        described.update(folder=str(files.folder), scale=config.scale, scaling_factor=config.scaling_factor)
        described.update(parts=_parts(weights.names(), prefixes), dtypes=_dtypes(weights.names()))
    return described


def _table(parts: list[dict[str, Any]]) -> list[str]:
    rows = [(part["part"], part["tensors"], part["parameters"], part["bytes"]) for part in parts]
    if len(rows) > 1:
        rows.append(("total", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    return [
        f"  {title:<24} {n:6d} tensors {count:16,d} parameters {size / 1e6:10.1f} MB" for title, n, count, size in rows
    ]
