"""`language_model.generate`: choices of tokens, on the engine and on torch."""

from __future__ import annotations

import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flashjanus.compat.janusflow import MultiModalityCausalLM
from flashjanus.errors import InputError
from official_calls import on_the_engine, warned
from small_model import relative_error

IDS = torch.tensor([[0, 4, 9, 30, 22]])


class Streamer:
    """What it was given, and whether it has ended."""

    def __init__(self) -> None:
        self.pieces: Queue[Any] = Queue()

    def put(self, value: torch.Tensor) -> None:
        self.pieces.put(value.flatten().tolist())

    def end(self) -> None:
        self.pieces.put(None)

    def __iter__(self) -> Any:
        return iter(self.pieces.get, None)


def greedy(model: MultiModalityCausalLM, **options: Any) -> list[list[int]]:
    return model.language_model.generate(IDS, max_new_tokens=6, **options)[:, IDS.shape[1] :].tolist()


def test_ids_come_back_with_the_new_ones_embeddings_do_not(either):
    ids = either.language_model.generate(IDS, max_new_tokens=6)
    embeds = either.language_model.get_input_embeddings()(IDS)
    new = either.language_model.generate(inputs_embeds=embeds, max_new_tokens=6)
    assert torch.equal(ids, torch.cat([IDS, new], 1))
    assert ids.dtype is torch.int64


def test_logits_of_every_token_are_those_of_torch(model, slow):
    with on_the_engine():
        fast = model.language_model.generate(IDS, max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    exact = slow.language_model.generate(IDS, max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(fast.sequences, exact.sequences)
    assert max(map(relative_error, fast.logits, exact.logits)) <= 2e-5


@pytest.mark.parametrize("options", [{}, dict(temperature=0.7, top_p=0.8), dict(top_k=3), dict(repetition_penalty=1.7)])
def test_the_same_seed_draws_the_same_on_the_engine_and_on_torch(model, slow, options):
    drawn = []
    for which in (model, slow):
        torch.manual_seed(11)
        drawn.append(greedy(which, do_sample=True, **options))
    assert drawn[0] == drawn[1]


def test_samples_are_among_the_likeliest(model):
    torch.manual_seed(0)
    first = model.language_model(IDS).logits[0, -1].topk(2).indices.tolist()
    rows = model.language_model.generate(IDS.repeat(40, 1), max_new_tokens=1, do_sample=True, top_k=2)
    assert set(rows[:, -1].tolist()) == set(first)


def test_a_row_that_ended_is_filled_up(either):
    rows = torch.tensor([[0, 4, 9, 30, 22], [0, 5, 6, 7, 8]])
    free = either.language_model.generate(rows, max_new_tokens=6)[:, 5:].tolist()
    end = free[0][2]
    assert end not in free[1]
    ended = either.language_model.generate(rows, max_new_tokens=6, eos_token_id=[end, 3], pad_token_id=2)[:, 5:]
    cut = free[0].index(end) + 1
    assert ended.tolist() == [free[0][:cut] + [2] * (6 - cut), free[1]]


def test_processors_and_criteria_are_asked_for_each_token(either):
    free, seen = greedy(either)[0], []

    def forbid(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        scores[:, free[0]] = -torch.inf
        return scores

    forbidden = greedy(either, logits_processor=[forbid])[0]
    assert free[0] not in forbidden
    assert seen == [5, 6, 7, 8, 9, 10]
    stopped = greedy(either, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 8])[0]
    assert stopped == free[:3]
    config = SimpleNamespace(to_dict=lambda: dict(max_new_tokens=2, num_beams=1, top_k=50, typical_p=1.0))
    assert either.language_model.generate(IDS, generation_config=config)[0, 5:].tolist() == free[:2]


def test_a_streamer_in_a_thread_gets_the_prompt_and_each_token(either):
    streamer, free = Streamer(), greedy(either)[0]
    thread = threading.Thread(target=greedy, args=(either,), kwargs=dict(streamer=streamer))
    thread.start()
    assert list(streamer) == [IDS[0].tolist(), *[[token] for token in free]]
    thread.join()


def test_a_streamer_ends_also_where_a_processor_fails(model):
    streamer = Streamer()

    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        greedy(model, streamer=streamer, logits_processor=[fail])
    assert list(streamer) == [IDS[0].tolist()]
    assert greedy(model)  # and the engine's memory was given back


def test_it_ends_where_the_context_does(either):
    with warned(UserWarning) as texts:
        ids = either.language_model.generate(IDS, max_new_tokens=500, use_cache=False)
    assert ids.shape[1] == 129
    assert any("context of 128 tokens has room for only 124" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_beams=4), "num_beams: not supported, got 4"),
        (dict(max_new_tokens=0), "max_new_tokens: expected an integer of at least 1"),
        (dict(do_sample=True, temperature=0), "do_sample=False is greedy"),
        (dict(top_p=1.5), "top_p: expected 0 to 1"),
        (dict(max_new_token=3), "max_new_token: unknown option, generate takes"),
        (dict(attention_mask=torch.ones(1, 4)), r"attention_mask: expected \[1, 5\], got \[1, 4\]"),
        (dict(attention_mask=torch.zeros(1, 5)), "a row of zeros"),
    ],
)
def test_what_it_refuses(model, options, words):
    with pytest.raises(InputError, match=words):
        model.language_model.generate(IDS, **options)
