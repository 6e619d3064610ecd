"""Each token's log-probability is that of the model's own distribution after all tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.ops import all_ops
from flashjanus.errors import InputError
from flashjanus.execution.likelihood import Likelihoods, measured
from flashjanus.scheduling.requests import Finished, Handle, TextJob, Token
from flashjanus.scheduling.scheduler import Scheduler
from gpu_stand_in import stand_in
from small_jobs import TOKENS, alone, small, text

TORCH = {name: ["torch"] for name in all_ops()}
NEAR = 1e-5
"""Of float32 logits of some units that a prefill and a decode step sum in another order."""
ASKED = (5, None, 0, 20, 1, None, 3)
"""Of the likeliest, by job: greedy and sampled ones, with and without images."""


def answers() -> list[TextJob]:
    shapes = [(3, 0, 9), (20, 0, 4), (5, 1, 6), (9, 2, 3), (2, 1, 7), (33, 0, 12), (4, 0, 1)]
    return [
        TextJob(
            request=text(n, length, images, n % 2 == 1),
            room=room,
            image_tokens=TOKENS,
            logprobs=ASKED[n],
        )
        for n, (length, images, room) in enumerate(shapes)
    ]


def told(scheduler: Scheduler, some: Sequence[TextJob], apart: int) -> tuple[dict[int, list[Token]], dict[int, Any]]:
    """Tokens and results by job, one of which comes after every so many steps."""
    tokens: dict[int, list[Token]] = {id(job): [] for job in some}
    results: dict[int, Any] = {}
    left = [*some]
    while left or scheduler.busy:
        if left:
            scheduler.submit(left.pop(0))
        for _ in range(apart):
            for event in scheduler.step():
                if isinstance(event, Token):
                    tokens[id(event.handle.job)].append(event)
                elif isinstance(event, Finished):
                    results[id(event.handle.job)] = event.result
    return tokens, results


def due(model: JanusFlow, job: TextJob, before: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (V,) of the token after a job's conversation and what of its answer comes before."""
    request = job.request
    pixels = None if request.pixels is None else request.pixels[None]
    logits = model.next_token_logits(torch.tensor([[*request.ids, *before]]), None, pixels, TOKENS)
    return logits[0].log_softmax(0)


def assert_as_due(model: JanusFlow, job: TextJob, tokens: Sequence[Token], ids: Sequence[int]) -> None:
    assert [event.id for event in tokens] == ids
    for n, event in enumerate(tokens):
        if job.logprobs is None:
            assert (event.logprob, event.likeliest) == (None, ())
            continue
        expected = due(model, job, ids[:n])
        assert event.logprob == pytest.approx(float(expected[event.id]), abs=NEAR)
        found = [token for token, _ in event.likeliest]
        assert found == expected.sort(descending=True, stable=True).indices[: job.logprobs].tolist()
        assert [p for _, p in event.likeliest] == pytest.approx(expected[found].tolist(), abs=NEAR)
        if job.logprobs and not job.request.sampling.temperature:
            assert event.likeliest[0] == (event.id, event.logprob)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.mark.parametrize("apart", [1, 3])
def test_rows_that_come_and_go_are_told_what_is_due(model: JanusFlow, apart: int) -> None:
    """Rows that ask beside rows that do not; the first token of each is that of the reading."""
    some = answers()
    tokens, results = told(model.scheduler(), some, apart)
    for job in some:
        assert_as_due(model, job, tokens[id(job)], results[id(job)])
        assert results[id(job)] == alone(model, replace(job, logprobs=None)), "asking changes nothing"
    assert model.runner.leased == 0


def test_the_device_may_be_a_step_ahead(model: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in for a GPU, whose copies land late: each token has the logits of its own step."""
    some = answers()
    driver = stand_in(monkeypatch)
    with driver.copies:
        on_gpu = small(device="cuda", implementations=TORCH, buckets={"rows": [1, 2, 4], "new_tokens": [8]})
        tokens, results = told(on_gpu.scheduler(), some, 2)
        for job in some:
            assert_as_due(on_gpu, job, tokens[id(job)], results[id(job)])
    monkeypatch.undo()
    for job in some:
        assert results[id(job)] == alone(model, replace(job, logprobs=None))


def test_a_row_that_is_cancelled_takes_nothing_of_the_others(model: JanusFlow) -> None:
    scheduler, some = model.scheduler(), answers()
    gone: list[Handle] = [scheduler.submit(some[0])]
    for _ in range(3):
        scheduler.step()
    tokens: dict[int, list[Token]] = {id(job): [] for job in some}
    for job in some[1:]:
        scheduler.submit(job)
    results: dict[int, Any] = {}
    for n in range(200):
        if n == 6:
            assert scheduler.cancel(gone[0])
        for event in scheduler.step():
            if isinstance(event, Token):
                tokens[id(event.handle.job)].append(event)
            elif isinstance(event, Finished):
                results[id(event.handle.job)] = event.result
    assert not scheduler.busy
    assert id(some[0]) not in results
    for job in some[1:]:
        assert_as_due(model, job, tokens[id(job)], results[id(job)])


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}])
def test_in_other_dtypes_it_is_the_softmax_in_float32(options: dict[str, str]) -> None:
    """Of the same logits at the first token; later a decode step rounds other sums: two roundings of the largest."""
    made, some = small(**options), [replace(job, logprobs=4) for job in answers()[:5]]
    tokens, results = told(made.scheduler(), some, 1)
    for job in some:
        for n, event in enumerate(tokens[id(job)]):
            expected = due(made, job, results[id(job)][:n])
            near = 4 * 2**-8 * float(expected.abs().max()) if n else 1e-6
            found = {event.id: event.logprob, **dict(event.likeliest)}
            assert [*found.values()] == pytest.approx(expected[[*found]].tolist(), abs=near)


def test_nothing_is_measured_where_nobody_asks(model: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*args: Any) -> Any:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Likelihoods, "__init__", measure)
    some = [replace(job, logprobs=None) for job in answers()]
    _, results = told(model.scheduler(), some, 1)
    assert len(results) == len(some)


@pytest.mark.parametrize("wrong", [-1, 21, 1.0, True, "all"])
def test_only_so_many_can_be_asked_for(model: JanusFlow, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"job\.logprobs: expected an integer from 0 to 20"):
        model.scheduler().submit(replace(answers()[0], logprobs=wrong))


def test_equal_ones_come_by_id_and_no_row_depends_on_another() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-6, 7, (5, 3001), generator=generator).float()
    logits[1] = 0.0
    logits[2, ::2] = -0.0
    logits[3, 7:] = -torch.inf
    logits[4] = torch.randn(3001, generator=generator) * 30
    tokens = torch.tensor([3, 1, 0, 9, 2], dtype=torch.int32)
    found = measured(logits, tokens, 20)
    double = logits.double().log_softmax(-1)
    for row, (ids, logprobs) in enumerate(found):
        order = logits[row].sort(descending=True, stable=True).indices[:20]
        assert ids.tolist() == [int(tokens[row]), *order.tolist()]
        torch.testing.assert_close(logprobs, double[row, ids.long()], rtol=1e-5, atol=1e-5)
        assert torch.equal(measured(logits[row : row + 1], tokens[row : row + 1], 20)[0], found[row])
    assert torch.equal(measured(logits, tokens, 0), found[:, :, :1])


def test_a_small_vocabulary_has_no_more() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    executor: Any = SimpleNamespace(
        gpu=None, outputs={"logits": logits}, states={"token": torch.tensor([2], dtype=torch.int32)}, alone=nullcontext
    )
    (found,) = Likelihoods(executor).fetch([(0, 20)])()
    assert [token for token, _ in found.likeliest] == [1, 2, 0]
    assert found.likeliest[1][1] == found.logprob
    assert sum(torch.tensor([p for _, p in found.likeliest]).exp()) == pytest.approx(1.0)
