"""Requests to a server whose answers are known: what is counted, and how each fault is told."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from flashjanus.cli import main
from flashjanus.errors import PeerError
from flashjanus.measure.bench.serving.drive import closed_loop, first_model, open_loop, warm_up
from flashjanus.measure.bench.serving.endpoint import Client, Target
from flashjanus.measure.bench.serving.load import Call
from flashjanus.measure.bench.serving.sample import Sample
from stub_endpoint import WORDS, Stub

T = TypeVar("T")
CALLS = {"image": Call("image", "a circle"), "chat": Call("chat", "Why?"), "vision": Call("vision", "What?", 3)}
HANGS = 0.5


def run(stub: Stub, work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    async def whole() -> T:
        target = Target(base_url=f"{stub.url}/v1", model="stub", **{"timeout": 30.0, **options})
        async with Client(target) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(whole(), 60))


def sent(stub: Stub, kind: str, **options: Any) -> Sample:
    return run(stub, lambda client: client.send(CALLS[kind]), **options)


def test_a_stream_of_text(stub: Stub) -> None:
    found = sent(stub, "vision", max_tokens=9, api_key="secret", options={"chat": {"temperature": 0}})
    assert (found.error, found.tokens, len(found.pieces)) == (None, 7, len(WORDS))
    assert found.sent <= found.headers <= found.event <= found.pieces[0] <= found.pieces[-1] <= found.ended
    assert stub.headers[0]["authorization"] == "Bearer secret"
    [body] = stub.bodies
    [message] = body.pop("messages")
    assert body == {
        "model": "stub",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


def test_a_stream_of_an_image(stub: Stub) -> None:
    found = sent(stub, "image", partial_images=2, options={"image": {"size": "64x64"}})
    assert (found.error, found.images) == (None, 1)
    assert found.sent <= found.headers <= found.event <= found.partial <= found.image <= found.ended
    assert stub.bodies == [
        {"model": "stub", "prompt": "a circle", "stream": True, "partial_images": 2, "size": "64x64"}
    ]
    assert "authorization" not in stub.headers[0]


@pytest.mark.parametrize("kind", ["image", "chat"])
def test_whole_answers(stub: Stub, kind: str) -> None:
    found = sent(stub, kind, stream=False, options={"chat": {"max_completion_tokens": 3}})
    assert (found.error, found.images, found.tokens) == ((None, 1, 0) if kind == "image" else (None, 0, 7))
    assert "stream" not in stub.bodies[0]
    assert "max_tokens" not in stub.bodies[0]


@pytest.mark.parametrize(
    ("kind", "odd", "error", "message"),
    [
        ("chat", "cut", "cut short", "before the answer did"),
        ("image", "cut", "cut short", "before the answer did"),
        ("image", "error", "error lost", "broken"),
        ("chat", "malformed", "malformed", "expected JSON"),
        ("chat", "plain", "502", "Bad Gateway"),
        ("chat", "json", "not a stream", "application/json"),
        ("image", "hang", "timeout", "within 0.5 s"),
    ],
)
def test_a_fault_has_its_code_and_its_message(stub: Stub, kind: str, odd: str, error: str, message: str) -> None:
    stub.odd[kind] = odd
    found = sent(stub, kind, timeout=HANGS if odd == "hang" else 30.0)
    assert found.error == error
    assert message in found.message


def test_what_is_refused_has_the_status_and_the_code(stub: Stub) -> None:
    stub.refuse["chat"] = [429]
    found = sent(stub, "chat")
    assert (found.error, found.message) == ("429 queue_full", "the queue is full")


def test_nobody_there() -> None:
    found = sent(Stub("http://127.0.0.1:1"), "chat")
    assert found.error == "ConnectError"


def test_a_closed_loop_has_as_many_at_once_as_there_are_workers(stub: Stub) -> None:
    told: list[int] = []
    samples = run(stub, lambda client: closed_loop(client, [CALLS["chat"]] * 12, 3, told.append))
    assert [sample.error for sample in samples] == [None] * 12
    assert told == list(range(1, 13))
    assert stub.most == 3


def test_a_closed_loop_begins_nothing_after_its_time(stub: Stub) -> None:
    assert run(stub, lambda client: closed_loop(client, [CALLS["chat"]] * 12, 3, lambda _: None, seconds=0.0)) == []


def test_an_open_loop_sends_when_it_is_due_whatever_the_answers_do(stub: Stub) -> None:
    stub.odd["chat"] = "hang"
    calls = [Call("chat", "Why?", due=n / 100) for n in range(6)]
    samples = run(stub, lambda client: open_loop(client, calls, 4, lambda _: None), timeout=HANGS)
    assert sorted(sample.error for sample in samples) == ["not sent"] * 2 + ["timeout"] * 4
    assert sorted(sample.due for sample in samples) == [call.due for call in calls]
    assert stub.most == 4
    assert all(sample.sent >= sample.due for sample in samples)


def test_the_first_model_that_is_listed(stub: Stub) -> None:
    stub.models = ("one", "two")
    assert run(stub, first_model) == "one"
    stub.models = ()
    with pytest.raises(PeerError, match="got none; name one with --model"):
        run(stub, first_model)
    with pytest.raises(PeerError, match="expected an endpoint"):
        run(Stub("http://127.0.0.1:1"), first_model)
    with pytest.raises(PeerError, match="404"):
        run(Stub(f"{stub.url}/nowhere"), first_model)


def test_a_first_request_that_fails_ends_the_run(stub: Stub) -> None:
    stub.refuse["image"] = [404]
    with pytest.raises(PeerError, match="kind image failed: 404 queue_full: the queue is full"):
        run(stub, lambda client: warm_up(client, [*CALLS.values()]))


def bench(*arguments: object) -> int:
    return main(["bench", "serve", *map(str, arguments)])


def test_the_command(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg"]
    load = ["--requests", 20, "--concurrency", 4, "--mix", "image=1,chat=1,vision=1", "--warmup", 2]
    stub.refuse["chat"] = []
    assert bench("--base-url", stub.url, *load, "--api-key", "secret", "--deadline-token", 60, *files) == 0
    out, err = capsys.readouterr()
    assert "20 requests in" in out
    assert "100.0 %" in out
    assert err.count("wrote") == 2
    assert len(stub.bodies) == 26
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    text = (tmp_path / "a.json").read_text()
    assert "secret" not in text
    data = json.loads(text)
    assert (data["kind"], data["model"], data["requests"]["sent"]) == ("serve", "stub", 20)
    assert set(data["latency"]) == {"image", "chat", "vision"}
    shown = main(["bench", "show", str(tmp_path / "a.json"), "--plot", str(tmp_path / "b.svg")])
    assert (shown, capsys.readouterr().out) == (0, out)
    assert (tmp_path / "b.svg").read_text() == (tmp_path / "a.svg").read_text()
    answers = data["latency"]["chat"]["succeeded"] + data["latency"]["vision"]["succeeded"]
    assert data["throughput"]["tokens_per_s"] == pytest.approx(7 * answers / data["seconds"])


def test_the_command_as_one_json_object(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "other", "--rate", 200, "--requests", 10, "--mix", "chat", "--json"]
    assert bench("--base-url", f"{stub.url}/v1/", *options) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["load"] == "open loop of 200 requests/s, mix chat, seed 0"
    assert len(data["samples"]) == 10
    assert {body["model"] for body in stub.bodies} == {"other"}


def test_the_command_says_where_nothing_succeeds(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.odd["chat"] = "plain"
    assert bench("--base-url", stub.url, "--requests", 3, "--mix", "chat", "--warmup", 0) == 1
    out, err = capsys.readouterr()
    assert "3 x" in out
    assert "no request succeeded" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base-url", "127.0.0.1:8000"], "--base-url: expected http://HOST"),
        (["--base-url", "http://user:key@127.0.0.1"], "--base-url"),
        (["--base-url", "http://127.0.0.1:99999"], "--base-url"),
        (["--base-url", "http://127.0.0.1:1/v1", "--model", "x", "--requests", "1"], "ConnectError"),
        (["--base-url", "http://127.0.0.1:1/v1"], "expected an endpoint"),
        (["--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["--rate", "0"], "--rate"),
        (["--rate", "0.001", "--duration", "1"], "no request would be sent within"),
        (["--rate", "1000", "--duration", "1e5"], "at most 100000 requests"),
        (["--requests", "200000"], "at most 100000 requests"),
        (["--mix", "audio"], "--mix"),
        (["--partial-images", "4"], "expected 0 to 3"),
        (["--image-options", "[]"], "expected a JSON object"),
        (["--chat-options", "{"], "expected a JSON object"),
        (["--api-key", "a b"], "--api-key"),
        (["--prompts", "none.txt"], "none.txt: no such file"),
        (["--plot", "a.png"], "expected FILE.svg"),
        (["--json", "/nowhere/a.json"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_what_is_not_installed_is_said() -> None:
    code = "import sys; sys.modules['httpx'] = None; from flashjanus.cli import main; sys.exit(main())"
    ran = subprocess.run([sys.executable, "-c", code, "bench", "serve"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert 'bench serve needs httpx, which is not installed: pip install "flashjanus[server]"' in ran.stderr


def test_an_interrupt_ends_at_once_and_leaves_no_file(stub: Stub, tmp_path: Path) -> None:
    """Requests in flight are not waited for."""
    stub.odd["chat"] = "hang"
    load = ["--mix", "chat", "--warmup", "0", "--rate", "50", "--json", str(tmp_path / "a.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "flashjanus", "bench", "serve", "--base-url", stub.url, *load],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            for _ in range(3000):
                if len(stub.bodies) > 2:
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"flashjanus: interrupted\n")
    assert [*tmp_path.iterdir()] == []
