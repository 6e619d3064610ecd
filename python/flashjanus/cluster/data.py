"""A batch on a Ray cluster, by Ray Data: replicas of the model make items, and only this process writes them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashjanus.cluster.items import Item, items
from flashjanus.cluster.rows import Fault, Row
from flashjanus.errors import FlashJanusError, UnavailableError
from flashjanus.scheduling.policy import Limits
from flashjanus.serving.backend import Backend, ThreadBackend

TOGETHER = 16
"""The rows of a part, which travel together. If a replica dies, at most this many rows per call in flight are
repeated."""
SPREAD = 64
"""The minimum number of parts, if there are enough rows, so that a few rows use all replicas."""
CALLS = 64
"""The most parts in flight in one replica."""
ATTEMPTS = 5
"""The most attempts at a row, counting those that a death cut short: a row that kills every replica has to be given
up."""
DIED = f"no result: {ATTEMPTS} replicas died one after another with this row in flight; see Ray's logs"
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("record", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("names", pa.list_(pa.string())),
        ("files", pa.list_(pa.binary())),
    ]
)
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a replica gets its model. options: those of `JanusFlow.from_pretrained`."""

    name: str
    vae: str | None
    options: Mapping[str, Any]
    limits: Limits
    threads: int | None = None

    def backend(self) -> Backend:
        import torch

        from flashjanus.api.janusflow import JanusFlow

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return ThreadBackend(JanusFlow.from_pretrained(self.name, vae=self.vae, **self.options), self.limits)


@dataclass(frozen=True)
class Pool:
    """The number of replicas (None: as many as fit), and the CPUs and GPUs of each."""

    replicas: int | None
    cpus: float
    gpus: float


class Attempts:
    """Counts how often each row was begun. It runs on the node of the process that writes, so that no other node's
    death ends it."""

    def __init__(self) -> None:
        self._begun = Counter[int]()

    def begin(self, lines: Sequence[int]) -> list[int]:
        self._begun.update(lines)
        return [self._begun[line] for line in lines]


class Replica:
    """A model on a node of the cluster; its calls run on threads, and their rows run together."""

    def __init__(self, source: Source, folder: Path, attempts: Any) -> None:
        self._backend, self._folder, self._attempts = source.backend(), folder, attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [unpacked(text) for text in batch["row"].to_pylist()]
        begun = ray.get(self._attempts.begin.remote([row.line for row in rows]))
        late = [row for row, count in zip(rows, begun, strict=True) if count > ATTEMPTS]
        found = [_packed(row, Fault(row.line, row.id, "ReplicaDied", DIED)) for row in late]
        try:
            rows = [row for row in rows if row not in late]
            found += [_packed(row, result) for row, result in items(self._backend, rows, self._folder)]
        except FlashJanusError:
            LOG.exception("the engine has ended; another process takes its place")
            os._exit(1)  # Ray restarts the replica and sends the rows again, as after any other death
        return pa.Table.from_pylist(found, SCHEMA)


def results(rows: Sequence[Row], folder: Path, source: Source, pool: Pool) -> Iterator[tuple[Row, Item | Fault]]:
    """Like `items`, on a pool of replicas. Closing the iterator ends them. If a node dies, the others take over its
    rows."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    together = max(1, min(TOGETHER, len(rows) // SPREAD))
    window = 2 * (source.limits.images + source.limits.answers)
    calls = min(CALLS, math.ceil(window / together))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=_here()).remote()
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(
            [{"row": packed(row)} for row in rows], override_num_blocks=math.ceil(len(rows) / together)
        ).map_batches(
            Replica,
            fn_constructor_args=(source, folder, attempts),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=pool.replicas,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        missing = {row.line: row for row in rows}
        table: Any
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for found in table.to_pylist():
                    row = missing.pop(found["line"])
                    yield row, _unpacked(row, found)
        except ray.exceptions.RayError as error:
            raise UnavailableError(f"the cluster cannot go on with the batch: {error}") from error
    assert not missing  # Ray returns each row of a dataset once


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def packed(row: Row) -> str:
    return json.dumps(asdict(row))


def unpacked(text: str) -> Row:
    given = json.loads(text)
    return Row(**{**given, "images": tuple(given["images"])})


def _packed(row: Row, result: Item | Fault) -> dict[str, Any]:
    if isinstance(result, Fault):
        return {"line": row.line, "error": result.error, "message": result.message}
    files = result.files
    return {"line": row.line, "record": json.dumps(result.record), "names": [*files], "files": [*files.values()]}


def _unpacked(row: Row, found: Mapping[str, Any]) -> Item | Fault:
    if found["record"] is None:
        return Fault(row.line, row.id, found["error"], found["message"])
    return Item(json.loads(found["record"]), dict(zip(found["names"], found["files"], strict=True)))
