"""On a Ray cluster of two nodes of this machine: nodes die, replicas are replaced, clients leave; nothing is lost and
nothing is there twice."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest
from flashjanus import JanusFlow
from flashjanus.cli import main
from flashjanus.cluster.folder import verify
from PIL import Image

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
from flashjanus.cluster.app import build  # noqa: E402
from flashjanus.cluster.arguments import Arguments  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.long
NODE: dict[str, Any] = dict(num_cpus=1, object_store_memory=80 * 2**20)
SERVED: dict[str, Any] = dict(
    model="shapes", dtype="float32", min_replicas=2, max_replicas=2, downscale_delay_s=3600, drain=60
)
PATIENCE = 120.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes, on each of which there is room for one replica."""
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        made.add_node(**NODE)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        serve.shutdown()
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def url(cluster: Cluster) -> str:
    """Of the application on both nodes."""
    from socket import create_server

    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(Arguments(**SERVED)))
    until(lambda: replicas() == 2)
    return f"http://127.0.0.1:{port}"


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def replicas() -> int:
    """That run."""
    deployment = serve.status().applications["default"].deployments["Server"]
    return int(deployment.replica_states.get("RUNNING", 0))


@cache
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", dtype="float32")


@cache
def alone(seed: int, steps: int) -> npt.NDArray[np.uint8]:
    """What the model draws without a server."""
    return np.asarray(model().generate_image("a red circle", num_inference_steps=steps, seed=seed).images[0])


def drawn(url: str, seed: int, steps: int, retries: int) -> npt.NDArray[np.uint8]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries, timeout=PATIENCE) as client:
        extra = dict(seed=seed, num_inference_steps=steps)
        reply = client.images.generate(prompt="a red circle", model="shapes", extra_body=extra)
    assert reply.data is not None
    [one] = reply.data
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json or ""))))


def test_a_node_that_dies_while_serving_loses_no_request(cluster: Cluster, url: str) -> None:
    steps, count = 60, 24
    [_, node] = cluster.list_all_nodes()
    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(drawn, url, seed, steps, 8) for seed in range(count)]
        until(lambda: any(one.done() for one in asked))
        cluster.remove_node(node, allow_graceful=False)
        images = [one.result(PATIENCE) for one in asked]
    for seed, image in enumerate(images):
        np.testing.assert_array_equal(image, alone(seed, steps))
    cluster.add_node(**NODE)
    until(lambda: replicas() == 2)


def test_a_rolling_restart_fails_no_request(url: str) -> None:
    """Without retries of the client's: replicas end what they have before they go."""
    stop, failed, images = threading.Event(), list[Exception](), dict[int, Any]()

    def ask(first: int) -> None:
        for seed in range(first, 10_000, 4):
            if stop.is_set():
                return
            try:
                images[seed] = drawn(url, seed, 30, 0)
            except openai.OpenAIError as error:
                failed.append(error)

    clients = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for one in clients:
        one.start()
    try:
        until(lambda: len(images) > 4)
        serve.run(build(Arguments(**SERVED, max_steps=50)))
        until(lambda: replicas() == 2)
        before = len(images)
        until(lambda: len(images) > before + 4)
    finally:
        stop.set()
        for one in clients:
            one.join()
    assert not failed
    for seed, image in images.items():
        np.testing.assert_array_equal(image, alone(seed, 30))
    reply = httpx.post(f"{url}/v1/images/generations", json=dict(prompt="x", num_inference_steps=60), timeout=PATIENCE)
    assert reply.status_code == 400  # so that it is the new application's


def test_a_storm_of_cancels_leaves_nothing(url: str) -> None:
    def leave(number: int) -> None:
        body = dict(prompt="a red circle", num_inference_steps=1000, stream=True, partial_images=3)
        with httpx.stream("POST", f"{url}/v1/images/generations", json=body, timeout=PATIENCE) as reply:
            assert reply.status_code == 200
            if number % 2:
                next(reply.iter_lines())

    def gone(number: int) -> None:
        body = dict(prompt="a red circle", num_inference_steps=1000)
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{url}/v1/images/generations", json=body, timeout=0.2 + number / 50)

    def live() -> float:
        lines = httpx.get(f"{url}/metrics", timeout=PATIENCE).text.splitlines()
        rows = [float(line.split()[-1]) for line in lines if line.startswith("flashjanus_live_rows")]
        assert rows
        return sum(rows)

    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit((leave, gone)[number % 3 == 0], number) for number in range(60)]
        for one in asked:
            one.result(PATIENCE)
    for _ in range(20):  # a request of /metrics reaches either replica
        until(lambda: live() == 0)
    for seed in range(6):
        np.testing.assert_array_equal(drawn(url, seed, 4, 0), alone(seed, 4))


def test_a_full_queue_refuses_with_429_and_says_when_to_try_again(cluster: Cluster, url: str) -> None:
    few = {**SERVED, "max_ongoing_requests": 2, "max_queued_requests": 2}
    serve.run(build(Arguments(**few)))
    until(lambda: replicas() == 2)

    def ask(_: int) -> httpx.Response:
        body = dict(prompt="a red circle", num_inference_steps=100)
        return httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE)

    with ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(ask, range(24)))
    assert {one.status_code for one in replies} == {200, 429}
    assert all("retry-after" in one.headers for one in replies if one.status_code == 429)


def test_a_node_that_dies_in_a_batch_loses_no_row_and_doubles_none(cluster: Cluster, tmp_path: Path) -> None:
    rows = [{"prompt": f"a red circle {n}", "num_inference_steps": 60} for n in range(40)]
    rows[7] = {"question": "Is a circle round?", "max_new_tokens": 4}
    rows[9] = {"prompt": "x", "num_inference_steps": -1}
    file, out, local = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "local"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["batch", str(file), "--dtype", "float32", "--live-images", "4", "--out"]
    codes: list[int] = []
    run = threading.Thread(
        target=lambda: codes.append(main([*arguments, str(out), "--ray", "auto", "--replicas", "2"]))
    )
    run.start()
    records = out / "records"
    until(lambda: records.exists() and len([*records.glob("*.json")]) >= 4)
    [_, node] = cluster.list_all_nodes()
    cluster.remove_node(node, allow_graceful=False)
    assert len([*records.glob("*.json")]) < 39
    run.join(PATIENCE)
    assert codes == [1]  # of the row that is wrong, alone
    assert verify(out) == dict(verified=39, files=77, damaged=[], unlisted=[], failed=1, left=0)
    counts = json.loads((out / "batch.json").read_text())
    assert (counts["rows"], counts["done"], counts["failed"]) == (40, 39, 1)
    assert main([*arguments, str(local)]) == 1
    for image in (local / "images").iterdir():
        assert (out / "images" / image.name).read_bytes() == image.read_bytes()
