"""On a Ray cluster of two nodes of this machine: nodes die, replicas are replaced, clients leave; nothing is lost and
nothing is there twice."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from socket import create_server
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest
from flashjanus import JanusFlow
from flashjanus.cli import main
from flashjanus.cluster.folder import verify
from flashjanus.errors import InputError
from PIL import Image

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.long
PAGE = Path(__file__).resolve().parents[2] / "docs/cluster.md"
NODE: dict[str, Any] = dict(num_cpus=1, object_store_memory=80 * 2**20)
SERVED: dict[str, Any] = dict(
    model="shapes", dtype="float32", min_replicas=2, max_replicas=2, downscale_delay_s=3600, drain=60
)
PATIENCE = 120.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes, on each of which there is room for one replica."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # takes seconds, which whoever collects these tests need not wait
    from ray import serve
    from ray.cluster_utils import Cluster

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
    port = started()
    deploy(**SERVED)
    return f"http://127.0.0.1:{port}"


def started() -> int:
    """The port of Ray Serve, which uses it for whatever it is told to run."""
    from ray import serve

    with create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    return port


def deploy(**arguments: Any) -> None:
    """Serve the application on both nodes, in the place of what there is."""
    from flashjanus.cluster.app import build
    from flashjanus.cluster.arguments import Arguments
    from ray import serve

    serve.run(build(Arguments(**arguments)))
    until(lambda: replicas() == 2)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def replicas() -> int:
    """That run."""
    from ray import serve

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
        deploy(**SERVED, max_steps=50)
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
    deploy(**SERVED, max_ongoing_requests=2, max_queued_requests=2)

    def ask(_: int) -> httpx.Response:
        body = dict(prompt="a red circle", num_inference_steps=100)
        return httpx.post(f"{url}/v1/images/generations", json=body, timeout=PATIENCE)

    with ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(ask, range(24)))
    assert {one.status_code for one in replies} == {200, 429}
    assert all("retry-after" in one.headers for one in replies if one.status_code == 429)


def test_a_row_on_which_replicas_die_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed once as many replicas as there may be have begun it; a row beside it that is new is done."""
    import pyarrow as pa
    from flashjanus.cluster import data
    from flashjanus.cluster.rows import Row, Usual, read
    from flashjanus.scheduling.policy import Limits

    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "num_inference_steps": 1}\n{"prompt": "b", "num_inference_steps": 1}\n')
    rows = [row for row in read(file, Usual({"image": {}, "answer": {}}, 0, {})) if isinstance(row, Row)]
    attempts = data.Attempts()
    for _ in range(data.ATTEMPTS):
        attempts.begin([1])
    monkeypatch.setattr(data.ray, "get", lambda found: found)
    remote = SimpleNamespace(begin=SimpleNamespace(remote=attempts.begin))
    replica = data.Replica(data.Source("shapes", None, {}, Limits()), tmp_path, remote)
    found = replica(pa.table({"row": [data.packed(row) for row in rows]})).to_pylist()
    assert {one["line"]: one["error"] for one in found} == {1: "ReplicaDied", 2: None}
    monkeypatch.setattr(data.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    replica._backend.close()
    with pytest.raises(SystemExit):  # so that Ray starts another process
        replica(pa.table({"row": [data.packed(rows[1])]}))


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "nowhere", "127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_said_at_once(address: str) -> None:
    from flashjanus.cluster.connect import connected

    with pytest.raises(InputError, match="ray"), connected(address):
        pass


def test_the_example_of_the_page_runs(cluster: Cluster) -> None:
    [command] = re.findall(r"^serve run .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    program = Path(sys.executable).with_name("serve")
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"}
    port = started()
    process = subprocess.Popen([program, *command.split()[1:]], env=environment, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or answers(address))
        assert process.poll() is None
        np.testing.assert_array_equal(drawn(address, 3, 4, 0).shape, (64, 64, 3))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_serve_on_ray_serves_until_it_is_told_to_stop(cluster: Cluster, spawn: Callable[..., Any]) -> None:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = spawn("serve", "--ray", cluster.address, "--port", str(port), "--dtype", "float32", "--json")
    begun = json.loads(process.stdout.readline())  # or its end, where it ends before
    np.testing.assert_array_equal(drawn(f"http://127.0.0.1:{port}", 3, 4, 0), alone(3, 4))
    process.terminate()
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, error
    ended = json.loads(out)
    assert begun["url"].endswith(str(port))
    assert ended["error"]["type"] == "Interrupted"
    from ray import serve

    assert "flashjanus" not in serve.status().applications


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
