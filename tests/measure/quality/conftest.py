"""A small model with the built-in one's tokenizer: it takes prompts, and a step of it takes a millisecond."""

from __future__ import annotations

import pytest
from flashjanus import JanusFlow
from flashjanus.builtin import builtin_folder
from flashjanus.inputs.tokenizer import Tokenizer
from small_model import small_config, small_state


@pytest.fixture(scope="session")
def small() -> JanusFlow:
    folder, config = builtin_folder(), small_config()
    names = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
    tokenizer = Tokenizer.from_files(*(folder / name for name in names))
    config["language_config"]["vocab_size"] = tokenizer.vocab_size
    return JanusFlow.from_state_dict(config, small_state(config), tokenizer=tokenizer, device="cpu", dtype="float32")
