"""The prompts that modes are compared on."""

from __future__ import annotations

from pathlib import Path

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.builtin import NAMES
from flashjanus.errors import InputError
from flashjanus.inputs.prompts import encode_generation_prompt
from flashjanus.measure.evaluation.sets import prompt_set

GENERAL = (
    "a lighthouse at dusk",
    "two cats asleep on a red sofa",
    "a bowl of oranges beside a blue vase, oil painting",
    "an astronaut riding a horse across a beach",
    "a street market in the rain, seen from above",
    "a portrait of an old fisherman in soft light",
)
IDS = 16
"""Token count of the made-up prompts for a model without a tokenizer."""
MAX_BYTES = 1 << 20


def choose_prompts(model: JanusFlow, path: Path | None) -> list[str]:
    """The prompts in `path`; otherwise two per category of the shapes world for the built-in model, or GENERAL.

    For a model without a tokenizer, the prompts are only names of made-up ones. Raises InputError.
    """
    if model.tokenizer is None:
        if path is not None:
            raise InputError(
                f"prompts: {model.name} has no tokenizer to read {path}; leave prompts out to use made-up tokens"
            )
        return [f"{IDS} made-up tokens, seed {k}" for k in range(len(GENERAL))]
    if path is not None:
        return read_prompts(path)
    return [prompt.text for prompt in prompt_set(2)] if model.name in NAMES else list(GENERAL)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, or of all *.txt files of a folder in the order of their names, without empty lines.

    Raises InputError.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            if not file.is_file() or file.stat().st_size > MAX_BYTES:
                raise InputError(f"{file}: expected a text file of at most {MAX_BYTES} bytes, one prompt per line")
            found += [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file}: expected UTF-8 text, one prompt per line ({error})") from None
    if not found:
        raise InputError(f"{path}: expected at least one prompt, on a line of its own in a text file (*.txt)")
    return found


def prompt_ids(model: JanusFlow, prompts: list[str]) -> list[list[int]]:
    """Token ids with the trailing tag; for a model without a tokenizer, as many made-up prompts."""
    if model.tokenizer is not None:
        limit = model.config.language.max_position_embeddings - model.config.num_image_tokens
        return [encode_generation_prompt(prompt, model.tokenizer, limit) for prompt in prompts]
    high = model.config.language.vocab_size
    made = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    return [torch.randint(high, (IDS,), generator=generator).tolist() for generator in made]


def noise(model: JanusFlow, seeds: range) -> torch.Tensor:
    """(B, c, L, L), float32, as `generate_image` draws it from these seeds."""
    size, channels = model.config.latent_size, model.config.gen_encoder.input_channels
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(channels, size, size, generator=generator) for generator in generators])
