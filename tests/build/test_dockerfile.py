"""The Dockerfile, as far as it can be checked without docker: what it copies, installs and starts is there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from flashjanus.cli.app import build_parser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]


def arguments(command: str) -> list[str]:
    return [rest for name, rest in COMMANDS if name == command]


def copied() -> list[str]:
    return [source for rest in arguments("COPY") for source in rest.split()[:-1]]


def default(argument: str) -> str:
    [found] = [rest for rest in arguments("ARG") if rest.startswith(f"{argument}=")]
    return found.partition("=")[2]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert sorted(copied()) == sorted(name[1:] for name in ignored if name.startswith("!"))
    for name in copied():
        assert (ROOT / name).exists()


def test_a_wheel_can_be_made_of_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the metadata of it, which names the files that the build reads."""
    from setuptools import build_meta

    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in copied():
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copy(source, target)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    folder = tmp_path / "out" / build_meta.prepare_metadata_for_build_wheel(str(tmp_path / "out"))
    metadata = (folder / "METADATA").read_text(encoding="utf-8")
    extras = re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE)
    assert set(default("EXTRAS").split(",")) <= set(extras)
    assert re.search(r"^License-File: LICENSE$", metadata, re.MULTILINE)


def test_each_device_has_its_tools() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"tools-cpu", "tools-cuda", "wheel"} == set(stages)
    assert f"tools-{default('DEVICE')}" in stages
    assert sorted(re.findall(r"FLASHJANUS_CUDA=(\w+)", DOCKERFILE)) == ["off", "on"]


def test_it_starts_a_server_and_asks_for_its_health() -> None:
    [entry] = arguments("ENTRYPOINT")
    program, *command = json.loads(entry)
    assert program == "flashjanus"
    options = build_parser().parse_args(command)
    assert (options.host, [str(options.port)]) == ("0.0.0.0", arguments("EXPOSE"))
    [check] = arguments("HEALTHCHECK")
    [_, _, code] = json.loads(check.partition("CMD")[2])
    compile(code, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{options.port}/health/ready" in code
