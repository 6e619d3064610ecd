"""A stand-in for JanusFlow, and ways to run the command in process and as a process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flashjanus
import pytest
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.cli import main
from flashjanus.errors import InputError
from flashjanus.execution.buckets import EXACT, Buckets
from PIL import Image


@dataclass
class FakePlan:
    program: str
    bucket: dict[str, int]

    def __str__(self) -> str:
        return f"plan of {self.program}"

    def why(self) -> str:
        return f"why of {self.program}"

    def to_json(self) -> dict[str, Any]:
        return {"program": self.program, **self.bucket}


@dataclass
class FakeModel:
    """Records every call; `answer` is streamed, `fail` is raised by stream_images, after `batches`, and by chat."""

    name: str = "shapes"
    device: str = "cpu"
    dtype: str = "torch.float32"
    numerics: str = "exact"
    quantization: str | None = None
    why: str = "cpu (asked for), torch.float32 (asked for)"
    answer: tuple[str, ...] = ("a red ", "circle")
    fail: BaseException | None = None
    batches: int = 0
    buckets: Buckets = EXACT
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def from_pretrained(self, name: str, **options: Any) -> FakeModel:
        self.calls.append(("from_pretrained", {"name": name, **options}))
        return self

    def stream_images(self, prompt: list[str], callback_on_step_end: Callable[..., Any], **options: Any) -> Any:
        """A picture shows its seed."""
        self.calls.append(("stream_images", {"prompt": prompt, **options}))
        seeds = options["seed"]
        if isinstance(seeds, int):
            seeds = [seeds + i for i in range(len(prompt) * options["num_images_per_prompt"])]
        for batch, start in enumerate(range(0, len(seeds), ROWS_AT_ONCE)):
            for step in range(options["num_inference_steps"]):
                callback_on_step_end(self, step, 0.0, {"latents": None})
            if self.fail is not None and batch == self.batches:
                raise self.fail
            part = seeds[start : start + ROWS_AT_ONCE]
            yield SimpleNamespace(
                images=[self.picture(seed) for seed in part],
                seeds=part,
                scores=None if options["best_of"] is None else [0.9] * len(part),
                timings={"total": 0.5},
            )

    @staticmethod
    def picture(seed: int) -> Image.Image:
        return Image.frombytes("RGB", (8, 8), bytes((seed + i) % 256 for i in range(192)))

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> Iterator[str]:
        self.calls.append(("chat", {"messages": messages, **options}))
        yield from self.answer
        if self.fail is not None:
            raise self.fail

    def plan(self, program: str, **bucket: int) -> FakePlan:
        self.calls.append(("plan", {"program": program, **bucket}))
        if bucket["rows"] < 1:
            raise InputError(f"rows must be at least 1, got {bucket['rows']}")
        return FakePlan(program, bucket)

    def called(self, name: str) -> dict[str, Any]:
        return next(options for call, options in self.calls if call == name)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """The model that every command of this test will load."""
    fake = FakeModel()
    monkeypatch.setattr(flashjanus, "JanusFlow", fake, raising=False)
    return fake


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, f"expected one line of JSON, got {self.out!r}"
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command line in this process. After the test, logs no longer go to the test's own stream."""
    root = logging.getLogger()
    before = root.handlers, root.level

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield run
    root.handlers, root.level = before


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `python -m flashjanus ARGUMENTS` (or `python ARGUMENTS` with module=False)."""
    started = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def start(*arguments: str | bytes | Path, module: bool = True, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, *(["-m", "flashjanus"] if module else []), *arguments]
        # A test run in the background ignores SIGINT, and children inherit that.
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
        process = subprocess.Popen(command, preexec_fn=_default_sigint, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
