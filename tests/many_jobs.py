"""Many jobs that come and go in a process of their own, and what is left of them, as JSON.

In a process that has run other tests, memory that those have freed comes and goes; here all of it is the jobs' own.
`--keep` plants a leak: nobody lets go of the handles of jobs that have ended.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from pathlib import Path

from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import Handle, ImageJob, TextJob
from small_jobs import TOKENS, image, small, text

SETTLED, REQUESTS = 300, 900
"""Before memory is taken to be what serving needs, since sessions of nearly all buckets are there, and after that."""
PREFIXES = 100_000
STATUS = Path("/proc/self/status")


def allocated() -> int:
    """Bytes of this process's own memory: pages of libraries, which the system drops and reads again, do not count, nor
    does what the allocator holds but nobody uses."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024


def main(keep: bool) -> None:
    """About a third of the jobs is cancelled."""
    model, draw = small(), random.Random(1)
    scheduler = model.scheduler(Limits(images=3, answers=3, prefix_bytes=PREFIXES))
    kinds = Sampler(2, 1.0), Sampler(3, 2.0)

    def job() -> ImageJob | TextJob:
        seed, length = draw.randrange(40), draw.randint(2, 14)
        if draw.random() < 0.5:
            rows = tuple(image(draw.choice(kinds), seed, length) for _ in range(draw.randint(1, 2)))
            return ImageJob(rows=rows, decode=False, pauses=draw.random() < 0.1)
        request = text(seed, length, draw.randrange(2), draw.random() < 0.5)
        return TextJob(request=request, room=draw.choice((0, 6)), image_tokens=TOKENS)

    kept: list[Handle] = []

    def serve(requests: int) -> tuple[float, int]:
        """The share that was cancelled, and the memory that is left once all have ended."""
        live: list[Handle] = []
        done = cancelled = 0
        while done < requests or scheduler.busy:
            while done < requests and scheduler.queued < 3:
                live.append(scheduler.submit(job()))
                kept.extend(live[-1:] if keep else ())
                done += 1
            if live and (draw.random() < 0.13 or scheduler.waits):
                cancelled += scheduler.cancel(draw.choice(live))
            scheduler.step()
            live = [handle for handle in live if not handle.ended]
        return cancelled / requests, allocated()

    _, settled = serve(SETTLED)
    cancelled, after = serve(REQUESTS)
    found = {
        "cancelled": cancelled,
        "live": scheduler.live,
        "queued": scheduler.queued,
        "leased": model.runner.leased,
        "prefixes": scheduler.prefixes.nbytes / PREFIXES,
        "evicted": scheduler.prefixes.evicted,
        "growth": (after - settled) / REQUESTS,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(keep="--keep" in sys.argv[1:])
