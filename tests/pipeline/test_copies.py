"""A model is bound to its process: what wants a copy of it is told to load it there."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flashjanus import ImageTokens, JanusFlow
from flashjanus.errors import CopyError
from flashjanus.execution.flow import FlowSession, Prepared
from flashjanus.execution.pictures import Decoder
from flashjanus.execution.session import ProgramSession
from flashjanus.execution.text import TextSession, images_encoder
from flashjanus.inputs.images import ImageProcessor

PARTS: dict[str, Callable[[JanusFlow], Any]] = {
    "model": lambda model: model,
    "bound method": lambda model: model.generate_image,
    "model in a container": lambda model: {"models": [model]},
    "runner": lambda model: model.runner,
    "executor": lambda model: model.runner.executor("encode_images", I=1),
    "flow session": lambda model: FlowSession(model.runner, 1, 1, 16, 1),
    "prepared": lambda model: Prepared(model.runner, 1, 1, 16, 1),
    "text session": lambda model: TextSession(model.runner, 1, 8, 16, 1, 8),
    "encoder": lambda model: ProgramSession(model.runner, *images_encoder(1)),
    "decoder": lambda model: Decoder(model.runner, 8, 8),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": pickle.dumps,
    "oldest pickle": lambda part: pickle.dumps(part, protocol=0),
    "torch.save": lambda part: torch.save(part, io.BytesIO()),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_told_to_load_the_model_in_the_child(untrained: JanusFlow, part: str, copied: str) -> None:
    made = PARTS[part](untrained)
    with pytest.raises(CopyError, match="Load the model in the child"):
        COPIES[copied](made)


def test_a_spawned_process_is_not_given_a_model(untrained: JanusFlow) -> None:
    process = multiprocessing.get_context("spawn").Process(target=print, args=(untrained,))
    with pytest.raises(CopyError, match="JanusFlow: cannot be copied or pickled, because it is bound to"):
        process.start()
    with pytest.raises(TypeError):  # which libraries expect of what cannot be pickled
        pickle.dumps(untrained)


def test_a_shallow_copy_is_the_same_model(untrained: JanusFlow) -> None:
    other = copy.copy(untrained)
    assert other.runner is untrained.runner
    assert type(other) is JanusFlow


def test_what_goes_in_and_comes_out_may_be_sent(untrained: JanusFlow) -> None:
    out = untrained.generate_image("a red circle", num_inference_steps=1, seed=1)
    sent = pickle.loads(pickle.dumps(out))
    assert (sent.seeds, sent.images[0].tobytes()) == (out.seeds, out.images[0].tobytes())
    for part in (ImageTokens(1, 2), ImageProcessor.from_file(None, 64), untrained.config, untrained.buckets):
        assert pickle.loads(pickle.dumps(part)) == part
    assert copy.deepcopy(untrained.tokenizer).encode_text("a circle") == untrained.tokenizer.encode_text("a circle")
