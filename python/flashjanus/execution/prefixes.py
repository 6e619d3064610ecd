"""Keeps what has been prepared or read for the next request that begins the same way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.execution.buckets import padded
from flashjanus.execution.flow import FlowPrefix, FlowRequest, Prepared
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import TextPrefix
from flashjanus.sampling.checks import MAX_STEPS


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


@dataclass
class Uses:
    """How often something was found, and how often it was not."""

    hits: int = 0
    misses: int = 0

    @property
    def rate(self) -> float:
        """The hit rate, 0 to 1; 0 if nothing was looked up."""
        return self.hits / max(1, self.hits + self.misses)


class PrefixStore(ProcessBound):
    """At most `limit` bytes of prompts of images with their time tokens, features of images, and keys and values of
    conversations. The least recently used entry is evicted first, also when the limit is lowered.

    prompts, images, conversations: hits and misses of each kind. evicted: the number of evictions.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.nbytes, self.evicted = limit, 0, 0
        self.prompts, self.images, self.conversations = Uses(), Uses(), Uses()
        self._kept: OrderedDict[Hashable, Sized] = OrderedDict()

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._evict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, kind: type[T], key: Hashable, uses: Uses) -> T | None:
        """The value stored for `key`, or None; the lookup is counted."""
        found = self._kept.get(key)
        if not isinstance(found, kind):
            uses.misses += 1
            return None
        uses.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, value: Sized) -> None:
        """Store a value, unless it alone is larger than the store."""
        self._drop(key)
        if value.nbytes > self.limit:
            return
        self._kept[key] = value
        self.nbytes += value.nbytes
        self._evict()

    def longest(self, names: Sequence[Hashable]) -> tuple[TextPrefix | None, int]:
        """The conversation that shares the most leading tokens with these, and the number of shared tokens; the
        lookup is counted."""
        best, length = None, 0
        for kept in self._kept.values():
            if isinstance(kept, TextPrefix) and (common := kept.common(names)) > length:
                best, length = kept, common
        if best is None:
            self.conversations.misses += 1
            return None, 0
        self.conversations.hits += 1
        self._kept.move_to_end(best.names)
        return best, length

    def put_conversation(self, read: TextPrefix) -> None:
        """Store a conversation in place of those that it continues, unless a stored one continues it."""
        kept = [(p, p.common(read.names)) for p in self._kept.values() if isinstance(p, TextPrefix)]
        longer = next((p for p, common in kept if common == len(read.names)), None)
        if longer is not None:
            self._kept.move_to_end(longer.names)
            return
        for shorter, common in kept:
            if common == len(shorter.names):
                self._drop(shorter.names)
        self.put(read.names, read)

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0

    def _evict(self) -> None:
        while self._kept and self.nbytes > self.limit:
            self._drop(next(iter(self._kept)))
            self.evicted += 1

    def _drop(self, key: Hashable) -> None:
        if key in self._kept:
            self.nbytes -= self._kept.pop(key).nbytes


def prepared(runner: Runner, store: PrefixStore, request: FlowRequest) -> FlowPrefix:
    """The prefix of an image's prompt and times, from the store or prepared on its own, so that its bits depend on
    no other request, only on the row's adapter."""
    prompt, times = request.timed_prompt
    buckets = runner.buckets
    rows = padded(1, buckets.rows)
    guided = request.schedule.guided or buckets.padded  # one plan then prepares both kinds
    key = ("prompt", prompt, times, guided, runner.adapters.identity(request.adapter))
    found = store.get(FlowPrefix, key, store.prompts)
    if found is not None:
        return found
    capacity = padded(len(prompt), buckets.prompt_tokens)
    steps = min(padded(len(times), buckets.steps), MAX_STEPS)
    with runner.lease(Prepared, rows, buckets.branches(int(guided), rows), capacity, steps) as session:
        session.run([(prompt, times)], request.adapter)
        prefix = session.prefix(0).kept()
    store.put(key, prefix)
    return prefix
