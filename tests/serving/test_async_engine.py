"""AsyncEngine: what it gives is what the model's own calls give, and whoever stops listening cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import BusyError, DeadlineError, InputError, UnavailableError
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine
from flashjanus.serving.messages import Answered, Begun, ChatRequest, ImageRequest, Images, Partial, Piece, Step

T = TypeVar("T")
QUESTION = [{"role": "user", "content": "Is a circle round?"}]
SHORT = dict(num_inference_steps=3, seed=5)
LONG: dict[str, Any] = {"max_new_tokens": 60, "do_sample": True, "temperature": 1e4, "seed": 3}


@cache
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", dtype="float32")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


@asynccontextmanager
async def engine(**limits: Any) -> AsyncIterator[AsyncEngine]:
    async with AsyncEngine(model(), Limits(**limits)) as made:
        yield made


def test_images_and_answers_are_those_of_the_model() -> None:
    async def served() -> tuple[Any, list[str]]:
        async with engine() as one:
            return await asyncio.gather(one.generate_image("a red circle", num_images_per_prompt=2, **SHORT), text(one))

    async def text(one: AsyncEngine) -> list[str]:
        return [piece async for piece in one.chat(QUESTION, max_new_tokens=8)]

    out, pieces = run(served())
    alone = model().generate_image("a red circle", num_images_per_prompt=2, **SHORT)
    assert out.seeds == alone.seeds == [5, 6]
    np.testing.assert_allclose([*map(np.asarray, out.images)], [*map(np.asarray, alone.images)], atol=1)
    assert "".join(pieces) == model().chat(QUESTION, max_new_tokens=8)


async def events_of(one: AsyncEngine, **request: Any) -> list[Any]:
    asked = ChatRequest(messages=QUESTION, options=dict(max_new_tokens=6, do_sample=True, seed=2), **request)
    return [event async for event in await one.submit(asked)]


def test_pieces_have_the_log_probabilities_that_were_asked_for() -> None:
    """Two at once, and one that asks for none: the same text."""

    async def served() -> list[list[Any]]:
        async with engine() as one:
            return await asyncio.gather(*(events_of(one, logprobs=n) for n in (None, 0, 3)))

    plain, bare, full = run(served())
    for events in (plain, bare, full):
        texts = [
            "".join(event.text for event in found if isinstance(event, Piece | Answered)) for found in (events, plain)
        ]
        assert texts[0] == texts[1]
    pieces, asked = ([event for event in events if isinstance(event, Piece)] for events in (plain, full))
    assert all(piece.token is None and not piece.likeliest for piece in pieces)
    assert all(event.token and not event.likeliest for event in bare if isinstance(event, Piece))
    ids, tokenizer = model().text_job(QUESTION, max_new_tokens=1).request.ids, model().tokenizer
    assert tokenizer is not None
    for piece in asked:
        due = model().next_token_logits(torch.tensor([ids]))[0].log_softmax(0)
        assert piece.token is not None
        for one in (piece.token, *piece.likeliest):
            assert one.logprob == pytest.approx(float(due[one.id]), abs=1e-4)
            assert one.text == tokenizer.token_bytes(one.id)
        assert [one.logprob for one in piece.likeliest] == pytest.approx(due.topk(3).values.tolist(), abs=1e-4)
        ids = (*ids, piece.token.id)


def test_more_log_probabilities_than_there_may_be_are_refused() -> None:
    async def served() -> None:
        async with engine() as one:
            with pytest.raises(InputError, match="logprobs: expected an integer from 0 to 20, got 21"):
                await one.submit(ChatRequest(messages=QUESTION, logprobs=21))

    run(served())


def test_the_best_candidates_are_those_that_the_model_itself_chooses() -> None:
    options = dict(best_of=5, num_images_per_prompt=2, num_inference_steps=3, seed=1)

    async def served() -> Any:
        async with engine() as one:
            return await one.generate_image("a red circle", **options)

    out, alone = run(served()), model().generate_image("a red circle", **options)
    assert out.seeds == alone.seeds
    assert out.scores == pytest.approx(alone.scores, abs=1e-4)


def test_candidates_are_drawn_until_enough_are_good() -> None:
    async def served() -> Any:
        async with engine() as one:
            events = one.stream_image("a red circle", best_of=9, accept_above=0.0, num_inference_steps=2, seed=1)
            return [event async for event in events]

    *_, last = run(served())
    assert isinstance(last, Images)
    assert last.usage.completion_tokens == model().config.num_image_tokens


@pytest.mark.parametrize(("steps", "asked", "at"), [(8, 3, [2, 4, 6]), (3, 3, [1, 2]), (1, 2, []), (7, 1, [3])])
def test_partial_images_are_spread_over_the_steps(steps: int, asked: int, at: list[int]) -> None:
    async def served() -> list[Any]:
        async with engine() as one:
            events = one.stream_image("a red circle", previews=asked, num_inference_steps=steps, full_previews=True)
            return [event async for event in events]

    events = run(served())
    partials = [event for event in events if isinstance(event, Partial)]
    assert [one.step for one in partials] == at
    assert [one.index for one in partials] == list(range(len(at)))
    assert isinstance(events[0], Begun)
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, steps + 1))
    assert all(one.images[0].shape == (64, 64, 3) and one.images[0].dtype == np.uint8 for one in partials)


async def settled(one: AsyncEngine) -> None:
    """Until nothing is live, and the figures say so."""
    while (stats := one.stats()).queued or stats.image_rows or stats.answer_rows:
        await asyncio.sleep(0.02)


def test_closing_an_iterator_cancels() -> None:
    async def served() -> int:
        async with engine() as one:
            async with aclosing(one.stream_image("a red circle", num_inference_steps=1000)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        break
            await settled(one)
            return one.stats().images

    assert run(served()) == 0


def test_a_task_that_is_cancelled_cancels_its_request_alone() -> None:
    async def served() -> tuple[Any, Any]:
        async with engine() as one:
            long = asyncio.create_task(one.generate_image("a red circle", num_inference_steps=1000))
            short = asyncio.create_task(one.generate_image("a red circle", **SHORT))
            out = await short
            long.cancel()
            await asyncio.wait([long])
            await settled(one)
            return long.cancelled(), out.seeds

    assert run(served()) == (True, [5])


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (ImageRequest(prompt=" "), "prompt"),
        (ImageRequest(prompt="x", options=dict(guidance_scal=2)), "guidance_scal"),
        (ImageRequest(prompt="x", options=dict(latents=0)), "latents"),
        (ImageRequest(prompt="x", options=dict(num_inference_steps=0)), "num_inference_steps"),
        (ImageRequest(prompt="x", previews=1, options=dict(best_of=2)), "best_of"),
        (ChatRequest(messages=[]), "user message"),
        (ChatRequest(messages=QUESTION, options=dict(top_p=2.0, do_sample=True)), "top_p"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_waits(request_: Any, named: str) -> None:
    async def served() -> None:
        async with engine() as one:
            await one.submit(request_)

    with pytest.raises(InputError, match=named):
        run(served())


def test_a_full_queue_refuses_and_goes_on() -> None:
    async def served() -> list[Any]:
        async with engine(images=1, queued=1) as one:
            wanted = [one.generate_image("a red circle", num_inference_steps=20, seed=n) for n in range(8)]
            return await asyncio.gather(*wanted, return_exceptions=True)

    found = run(served())
    assert any(isinstance(one, BusyError) for one in found)
    assert all(isinstance(one, BusyError) or one.seeds for one in found)


def test_a_deadline_ends_a_request() -> None:
    async def served() -> None:
        async with engine() as one:
            await one.generate_image("a red circle", num_inference_steps=1000, deadline=0.2)

    with pytest.raises(DeadlineError):
        run(served())


def test_an_engine_that_drains_finishes_what_it_has_and_takes_no_more() -> None:
    async def served() -> tuple[Any, bool]:
        async with engine() as one:
            stream = await one.submit(ImageRequest(prompt="a red circle", options=SHORT))
            drained = await one.drain(30)
            assert not one.ready
            with pytest.raises(UnavailableError):
                await one.generate_image("a red circle")
            return [event async for event in stream][-1], drained

    last, drained = run(served())
    assert isinstance(last, Images)
    assert drained


def test_what_runs_when_the_engine_closes_is_told() -> None:
    async def served() -> None:
        one = AsyncEngine(model())
        stream = await one.submit(ImageRequest(prompt="a red circle", options=dict(num_inference_steps=1000)))
        await one.aclose()
        async for _ in stream:
            pass

    with pytest.raises(UnavailableError):
        run(served())


def test_a_loop_wakes_once_for_all_that_is_told_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of three answers that are written together: far fewer wake-ups than tokens."""
    wakes = 0

    async def served() -> int:
        loop = asyncio.get_running_loop()
        before = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return before(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        async with engine() as one:
            asked = ChatRequest(messages=QUESTION, options=LONG)
            streams = await asyncio.gather(*(one.submit(asked) for _ in range(3)))
            told = await asyncio.gather(*(drained(stream) for stream in streams))
        return sum(map(len, told))

    async def drained(stream: Any) -> list[Any]:
        return [event async for event in stream if isinstance(event, Piece)]

    tokens = run(served())
    assert tokens == 3 * LONG["max_new_tokens"]
    assert wakes < 0.7 * tokens
