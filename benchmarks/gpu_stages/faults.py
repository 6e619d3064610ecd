"""Faults for a dry run: the first implementation of an op is wrong, raises, hangs or ends its process, or all
implementations of an op are wrong ("hopeless")."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashjanus.engine.ops import Given, Op

FAULTS = ("wrong", "raise", "crash", "hang", "hopeless")
NAME = "planted"


def plant(what: str) -> None:
    """what: FAULT:OP. Raises ValueError."""
    from flashjanus.engine.ops import Implementation, all_ops

    fault, _, op = what.partition(":")
    if fault not in FAULTS or op not in all_ops():
        raise ValueError(f"--plant: expected one of {', '.join(FAULTS)}, a colon and an op, got {what!r}")
    of = all_ops()[op]
    planted = Implementation(NAME, of, _body(fault, of))
    others = {} if fault == "hopeless" else dict(of.implementations)
    if fault == "hopeless":  # with which the others are compared
        others["torch"] = replace(of.implementations["torch"], body=planted.body)
    of.implementations.clear()
    of.implementations |= {NAME: planted, **others}


def _body(fault: str, of: Op) -> Callable[[Given], None]:
    torchs = of.implementations["torch"].body

    def run(call: Given) -> None:
        if fault == "raise":
            raise RuntimeError("planted: no kernel image is available for execution on the device")
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            signal.setitimer(signal.ITIMER_REAL, 2)  # a row's limit, which a dry run need not wait for
            time.sleep(3600)
        torchs(call)
        last = call.get(of.schema.outputs[0].name) if of.schema.outputs else list(call.tensors.values())[-1]
        last.view(-1)[-1:].add_(1 + last.abs().max())

    return run
