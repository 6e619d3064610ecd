"""What has been prepared, encoded or read once is not again, and gives the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.execution import reading
from flashjanus.execution.flow import Prepared
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.session import ProgramSession
from flashjanus.execution.text import TextPrefix, TextRequest, TextSession
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import ImageJob, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from small_jobs import SAMPLERS, TOKENS, alone, finished, image, normal, prompt, small
from small_model import FEATURES, IMAGE, IMAGE_SIZE, START, small_config, small_state

BLOCK = (START, *[IMAGE] * FEATURES)
NO_STORE = Limits(prefix_bytes=0)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


def pixels(*seeds: int) -> torch.Tensor:
    return torch.cat([normal(seed, 1, 3, IMAGE_SIZE, IMAGE_SIZE) for seed in seeds])


def ask(ids: tuple[int, ...], images: torch.Tensor | None = None, room: int = 0) -> TextJob:
    return TextJob(request=TextRequest(ids, images), room=room, image_tokens=TOKENS)


def serve(scheduler: Scheduler, job: Any) -> Any:
    scheduler.submit(job)
    (found,) = finished(scheduler).values()
    return found


@dataclass
class Work:
    """prepared: prompts; encoded: images; read: token slots of prefills."""

    prepared: int = 0
    encoded: int = 0
    read: int = 0


@contextmanager
def counted(model: JanusFlow) -> Iterator[Work]:
    work, take = Work(), model.runner.take

    def counting(make: Any, *bucket: Any) -> Any:
        work.prepared += make is Prepared
        work.encoded += make is ProgramSession and bucket[0] == "encode_images"
        work.read += bucket[1] if make is TextSession else 0
        return take(make, *bucket)

    model.runner.take = counting  # type: ignore[method-assign]
    try:
        yield work
    finally:
        del model.runner.take  # type: ignore[method-assign]


def test_the_same_prompt_is_prepared_once(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    job = ImageJob(rows=tuple(image(SAMPLERS[2], 3, 6) for _ in range(3)), decode=False)
    with counted(model) as work:
        first = serve(scheduler, job)
        assert torch.equal(serve(scheduler, job), first)
        assert work.prepared == 1
        serve(scheduler, ImageJob(rows=(image(SAMPLERS[1], 3, 6),), decode=False))
        assert work.prepared == 2, "of other times"
    assert scheduler.prefixes.prompts.hits == 1
    assert scheduler.prefixes.prompts.misses == 2


def test_images_of_one_prompt_are_prepared_once_without_a_store(model: JanusFlow) -> None:
    job = ImageJob(
        rows=tuple(replace(image(SAMPLERS[2], 3, 6), noise=normal(n, 4, 8, 8)) for n in range(3)), decode=False
    )
    with counted(model) as work:
        serve(model.scheduler(NO_STORE), job)
    assert work.prepared == 1


def test_a_second_question_about_an_image_reads_only_what_is_new(model: JanusFlow) -> None:
    scheduler, shown = model.scheduler(), (0, *BLOCK)
    with counted(model) as work:
        serve(scheduler, ask((*shown, *prompt(1, 9)), pixels(1)))
        assert (work.encoded, work.read) == (1, 32)
        found = serve(scheduler, ask((*shown, *prompt(2, 9)), pixels(1)))
        assert (work.encoded, work.read) == (1, 48), "the question alone, in a bucket of 16"
    torch.testing.assert_close(found, alone(model, ask((*shown, *prompt(2, 9)), pixels(1))), rtol=0, atol=1e-5)
    assert scheduler.prefixes.conversations.hits == 1


def test_an_image_at_another_place_is_encoded_once_but_read_again(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    with counted(model) as work:
        serve(scheduler, ask((0, *BLOCK, 5), pixels(1)))
        job = ask((9, 8, 7, *BLOCK, 5, *BLOCK, 6), pixels(1, 2))
        found = serve(scheduler, job)
        assert work.encoded == 2
    torch.testing.assert_close(found, serve(model.scheduler(NO_STORE), job), rtol=0, atol=1e-5)


def test_the_next_turn_reads_only_what_is_new(model: JanusFlow) -> None:
    scheduler, first = model.scheduler(), (0, *BLOCK, *prompt(1, 9))
    answer = serve(scheduler, ask(first, pixels(1), room=20))
    turn = ask((*first, *answer, *prompt(2, 3), *BLOCK, *prompt(3, 2)), pixels(1, 2), room=5)
    with counted(model) as work:
        found = serve(scheduler, turn)
        assert work.encoded == 1, "the second image"
        assert work.read == 32, "the last token of the answer and what follows it"
    assert found == serve(model.scheduler(NO_STORE), turn)


def test_a_conversation_that_shares_nothing_finds_nothing(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    serve(scheduler, ask((1, 2, 3)))
    found = serve(scheduler, ask((4, 2, 3)))
    assert torch.equal(found, serve(model.scheduler(NO_STORE), ask((4, 2, 3))))
    assert scheduler.prefixes.conversations.hits == 0
    assert scheduler.prefixes.conversations.misses == 2


def test_a_conversation_that_is_asked_again_reads_its_last_token(model: JanusFlow) -> None:
    scheduler, job = model.scheduler(), ask((0, *BLOCK, *prompt(1, 20)), pixels(1))
    first = serve(scheduler, job)
    with counted(model) as work:
        torch.testing.assert_close(serve(scheduler, job), first, rtol=0, atol=1e-5)
        assert (work.encoded, work.read) == (0, 16)


def test_a_start_tag_without_an_image_is_not_an_images_beginning(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    plain = TextJob(request=TextRequest((0, START, 5)), room=0)
    serve(scheduler, plain)
    shown = ask((0, *BLOCK, *prompt(1, 16)), pixels(1))  # so many that a bucket begins after the tag
    torch.testing.assert_close(serve(scheduler, shown), serve(model.scheduler(NO_STORE), shown), rtol=0, atol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": dict(image_attention="bidirectional"),
    "padded": dict(buckets={"rows": [2, 4], "prompt_tokens": [8, 24, 64]}),
    "bidirectional, padded": dict(image_attention="bidirectional", buckets={"rows": [2], "prompt_tokens": [8, 24]}),
}


@pytest.mark.parametrize("piece", [512, 20])
@pytest.mark.parametrize("kind", list(KINDS))
def test_results_do_not_depend_on_the_store(monkeypatch: pytest.MonkeyPatch, kind: str, piece: int) -> None:
    """With pieces of 32 tokens, which is twice an image: conversations are read in several."""
    options = dict(KINDS[kind])
    config = small_config(image_attention=options.pop("image_attention", None))
    model = JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32", **options)
    long = (0, *prompt(1, 7), *BLOCK, *prompt(2, 11), *BLOCK, *prompt(3, 30))
    jobs = [
        ask(long, pixels(1, 2)),
        ask(long[:-5], pixels(1, 2), room=3),
        ask((*long[:53], *prompt(4, 9)), pixels(1, 2)),
        ask((*long[:31], *prompt(5, 3)), pixels(1)),
        ask((*long[:8], *BLOCK, 5, *BLOCK, 6, *prompt(6, 20)), pixels(3, 1), room=4),
        ask((*long, *prompt(7, 12)), pixels(1, 2)),
        ask((*long, *prompt(8, 12)), pixels(1, 3)),
        ask((0, *prompt(9, 100))),
        ask((0, *prompt(9, 100)[:70], 3), room=2),
    ]
    due = [serve(model.scheduler(NO_STORE), job) for job in jobs]
    monkeypatch.setattr(reading, "LEAST_PIECE", piece)
    for order in (jobs, jobs[::-1]):
        scheduler = model.scheduler()
        for job in order:
            found, expected = serve(scheduler, job), due[jobs.index(job)]
            if job.room:
                assert found == expected
            else:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert scheduler.prefixes.conversations.hits >= 6
    assert model.runner.leased == 0


@dataclass(frozen=True)
class Sized:
    nbytes: int


ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 6), st.integers(0, 60)),
    st.tuples(st.just("get"), st.integers(0, 6), st.just(0)),
    st.tuples(st.just("clear"), st.just(0), st.just(0)),
    st.tuples(st.just("limit"), st.just(0), st.integers(0, 100)),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(ACTIONS, max_size=40), st.integers(0, 100))
def test_the_store_keeps_what_was_used_last_within_its_limit(actions: list[tuple[str, int, int]], limit: int) -> None:
    store, kept = PrefixStore(limit), OrderedDict[int, Sized]()
    hits = misses = 0
    for action, key, size in actions:
        if action == "clear":
            store.clear()
            kept.clear()
        elif action == "limit":
            store.limit = limit = size
        elif action == "get":
            found = store.get(Sized, key, store.images)
            assert found is kept.get(key)
            hits, misses = hits + (key in kept), misses + (key not in kept)
            if key in kept:
                kept.move_to_end(key)
        else:
            value = Sized(size)
            store.put(key, value)
            kept.pop(key, None)
            if size <= limit:
                kept[key] = value
        while sum(v.nbytes for v in kept.values()) > limit:
            kept.popitem(last=False)
        assert store.nbytes == sum(v.nbytes for v in kept.values()) <= limit
        assert len(store) == len(kept)
    assert (store.images.hits, store.images.misses) == (hits, misses)


CONVERSATIONS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7).map(tuple), max_size=25)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(CONVERSATIONS, CONVERSATIONS, st.sampled_from([40, 200, 10_000]))
def test_the_longest_beginning_is_found(put: Any, asked: Any, limit: int) -> None:
    store = PrefixStore(limit)
    for names in put:
        made = torch.zeros(1, len(names), 1, 1)
        store.put_conversation(TextPrefix(names, made, made))
        kept = [value for value in store._kept.values() if isinstance(value, TextPrefix)]
        assert store.nbytes == sum(value.nbytes for value in kept) <= limit
        assert len({value.names for value in kept}) == len(kept)
        assert not any(
            one is not other and other.names[: len(one.names)] == one.names for one in kept for other in kept
        ), "none goes on with another"
    for names in asked:
        best, length = store.longest(names)
        every = [value.common(names) for value in store._kept.values() if isinstance(value, TextPrefix)]
        assert length == max(every, default=0)
        assert (best is None) == (length == 0)
        assert best is None or best.names[:length] == names[:length]
