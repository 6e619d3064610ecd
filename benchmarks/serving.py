"""Loads on a server of the built-in model: images at once, tokens beside images, admission under load.

Starts `flashjanus serve` on this machine and sends it loads, in part by `flashjanus bench serve`: 16 images one after
another, 16 at once, and 16 as one batch in this process without a server, in turns; the time between two tokens while
images are drawn, against the time of an evaluation at that load; the time until a request is admitted, at Poisson times
of 0.7 of the rate that a closed loop reaches.

    python benchmarks/serving.py --json serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flashjanus import JanusFlow
from flashjanus.cli.provenance import provenance
from flashjanus.disk.writing import write_json
from flashjanus.serving import AsyncEngine, ProcessBackend
from flashjanus.serving.messages import ChatRequest, Piece

IMAGES = 16
SHARE = 0.7
PROMPT = "a red circle to the left of a blue square"
FLASHJANUS = [sys.executable, "-m", "flashjanus"]


@contextmanager
def served() -> Iterator[str]:
    """The URL of a server of the built-in model."""
    command = [*FLASHJANUS, "serve", "--port", "0", "--json", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def drawn(url: str, seed: int) -> None:
    body = json.dumps({"prompt": PROMPT, "seed": seed}).encode()
    asked = urllib.request.Request(f"{url}/v1/images/generations", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as reply:
        assert len(json.load(reply)["data"]) == 1


def images(url: str, model: JanusFlow, rounds: int) -> dict[str, Any]:
    """Seconds of IMAGES images for each way, in turns; the first round does not count."""
    seeds = range(IMAGES)

    def at_once() -> None:
        with ThreadPoolExecutor(IMAGES) as clients:
            list(clients.map(lambda seed: drawn(url, seed), seeds))

    def one_batch() -> None:
        job = model.image_job(PROMPT, num_images_per_prompt=IMAGES, seed=list(seeds))
        scheduler = model.scheduler()
        scheduler.submit(job)
        while scheduler.busy:
            scheduler.step()

    ways: dict[str, Callable[[], object]] = {
        "one after another": lambda: [drawn(url, seed) for seed in seeds],
        "at once": at_once,
        "one batch, no server": one_batch,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - began)
    return {name: {"median_s": statistics.median(own), "samples_s": own} for name, own in taken.items()}


def loaded(url: str, folder: Path, *load: str) -> dict[str, Any]:
    """The findings of `flashjanus bench serve`."""
    to = folder / "load.json"
    command = [*FLASHJANUS, "bench", "serve", "--base-url", f"{url}/v1", "--json", str(to), "--quiet", *load]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(to.read_text())
    return found


async def tokens_beside_images(seconds: float) -> dict[str, Any]:
    """Write answers while images are drawn, in the engine's process and without HTTP. The built-in model's own answers
    are one word; at this temperature they continue."""
    asked = [{"role": "user", "content": "Name some shapes."}]
    gaps, ends = list[float](), 0.0

    async def draw(engine: AsyncEngine, seed: int) -> None:
        while time.perf_counter() < ends:
            await engine.generate_image(PROMPT, seed=seed)

    async def write(engine: AsyncEngine, seed: int) -> None:
        while time.perf_counter() < ends:
            options = {"max_new_tokens": 200, "do_sample": True, "temperature": 1e4, "seed": seed}
            last = None
            async for event in await engine.submit(ChatRequest(messages=asked, options=options)):
                now = time.perf_counter()
                if isinstance(event, Piece):
                    gaps.extend([] if last is None else [now - last])
                    last = now

    async with AsyncEngine(await asyncio.to_thread(ProcessBackend, "shapes")) as engine:
        ends = time.perf_counter() + seconds
        await asyncio.gather(*(work(engine, seed) for seed in range(4) for work in (draw, write)))
        count, spent = engine.stats().turns["evaluation"]
    spread = {"n": len(gaps), **{f"p{n}": statistics.quantiles(gaps, n=100)[n - 1] for n in (50, 90, 99)}}
    return {"evaluation_s": spent / count, "between_s": spread, "p99_in_evaluations": spread["p99"] * count / spent}


def admission(url: str, folder: Path) -> dict[str, Any]:
    """Send SHARE of the load that the server can carry."""
    mix = ("--mix", "image=0.5,chat=0.5")
    most = loaded(url, folder, "--concurrency", "16", "--requests", "160", *mix)["throughput"]["requests_per_s"]
    load = loaded(url, folder, "--rate", f"{SHARE * most:.3f}", "--requests", "240", *mix)
    return {"capacity_per_s": most, "rate_per_s": SHARE * most, "admission_s": load["latency_of_all"]["admission"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of images each way (default: 5)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of tokens beside images (default: 30)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    tokens = asyncio.run(tokens_beside_images(args.seconds))  # while no other server is there
    model = JanusFlow.from_pretrained("shapes")
    with served() as url, TemporaryDirectory() as folder:
        found = {
            **provenance(model),
            "images": images(url, model, args.rounds),
            "tokens beside images": tokens,
            "admission": admission(url, Path(folder)),
        }
    print(json.dumps(found, indent=1))
    if args.json is not None:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
