"""The workflow for GitHub and the settings of its wheels, as far as they can be checked without either."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
JOBS: dict[str, Any] = WORKFLOW["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_what_it_makes_is_a_target(command: str) -> None:
    target = shlex.split(command)[1].replace(".venv", "$(VENV)")
    assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)


def test_the_tests_it_names_are_there() -> None:
    named = [path for command in COMMANDS for path in re.findall(r"tests/\S+\.py", command)]
    assert named
    assert all((ROOT / path).is_file() for path in named)


def test_the_oldest_versions_that_are_required_are_tested(project: dict[str, Any]) -> None:
    first = JOBS["test"]["strategy"]["matrix"]["include"][0]
    assert project["project"]["requires-python"] == f">={first['python']}"
    assert first["torch"].replace("==", ">=").removesuffix(".0") in project["project"]["dependencies"]


def test_every_python_that_is_tested_has_a_wheel(project: dict[str, Any]) -> None:
    tested = {row["python"] for row in JOBS["test"]["strategy"]["matrix"]["include"]}
    built = {build.removesuffix("-*") for build in project["tool"]["cibuildwheel"]["build"]}
    assert built == {f"cp{python.replace('.', '')}" for python in tested}


def test_all_holds_every_extra_that_installs_anywhere(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    [names] = re.findall(r"flashjanus\[(.*)\]", extras["all"][0])
    assert set(names.split(",")) == set(extras) - {"all", "test", "docs", "flash-attn", "xformers"}
