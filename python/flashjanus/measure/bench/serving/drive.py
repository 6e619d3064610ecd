"""Sends a load: from workers that each wait for their answer, or at set times regardless of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import httpx

from flashjanus.errors import PeerError

from .endpoint import Client, Refused
from .load import Call
from .sample import Sample

Done = Callable[[int], None]
"""Called with the number of requests that have ended."""
PICKED = 30.0
"""Seconds within which an endpoint has to list its models."""


async def first_model(client: Client) -> str:
    """The first model that the endpoint lists. Raises PeerError."""
    url = f"{client.target.base_url}/models"
    try:
        names = await asyncio.wait_for(client.models(), PICKED)
    except Refused as refused:
        raise PeerError(f"{url}: expected a list of models, got {': '.join(map(str, refused.args))}") from None
    except (httpx.HTTPError, httpx.InvalidURL, asyncio.TimeoutError) as error:
        said = str(error) or type(error).__name__
        raise PeerError(f"{url}: expected an endpoint of OpenAI's interface, got: {said}") from None
    if not names:
        raise PeerError(f"{url}: expected at least one model in the list, got none; name one with --model")
    return names[0]


async def warm_up(client: Client, calls: Sequence[Call]) -> None:
    """Send requests that are not counted. Raises PeerError if one fails."""
    for call in calls:
        sample = await client.send(call)
        if sample.error is not None:
            raise PeerError(
                f"{client.target.base_url}: the first request of kind {call.kind} failed: "
                f"{sample.error}: {sample.message} (--mix can leave a kind out, and --warmup 0 continues nevertheless)"
            )


async def closed_loop(
    client: Client, calls: Sequence[Call], workers: int, done: Done, *, seconds: float | None = None
) -> list[Sample]:
    """Keep a fixed number of requests in flight, sending the next as one ends; none starts after `seconds`."""
    client.restart()
    left, samples = iter(calls), list[Sample]()

    async def work() -> None:
        while seconds is None or client.now() < seconds:
            call = next(left, None)
            if call is None:
                return
            samples.append(await client.send(call))
            done(len(samples))

    tasks = [asyncio.ensure_future(work()) for _ in range(min(workers, len(calls)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)
    return samples


async def open_loop(client: Client, calls: Sequence[Call], most: int, done: Done) -> list[Sample]:
    """Send each request when it is due. If `most` are unanswered by then, it is not sent and counts as failed."""
    client.restart()
    samples, flying = list[Sample](), set[asyncio.Task[None]]()

    async def fly(call: Call) -> None:
        samples.append(await client.send(call))
        done(len(samples))

    try:
        for call in calls:
            assert call.due is not None
            await asyncio.sleep(max(0.0, call.due - client.now()))
            for task in [task for task in flying if task.done()]:
                flying.remove(task)
                task.result()
            if len(flying) < most:
                flying.add(asyncio.ensure_future(fly(call)))
                continue
            now = client.now()
            unsent = Sample(call.kind, call.due, now, ended=now)
            unsent.fail("not sent", f"{most} requests were unanswered (--in-flight)")
            samples.append(unsent)
            done(len(samples))
        await asyncio.gather(*flying)
    finally:
        await _end(flying)
    return samples


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
