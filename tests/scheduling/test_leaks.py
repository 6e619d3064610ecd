"""Requests that come and go leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).parents[1] / "many_jobs.py"
GROWTH = 2048
"""Bytes of a request that may be left: a bucket's session is made later than the others now and then."""


def left(*options: str) -> dict[str, Any]:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    command = [sys.executable, JOBS, *options]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_many_requests_of_which_a_third_is_cancelled_leave_nothing() -> None:
    found = left()
    assert 0.28 < found["cancelled"] < 0.4
    assert (found["live"], found["queued"], found["leased"]) == ([0, 0], 0, 0)
    assert 0 < found["prefixes"] <= 1
    assert found["evicted"] > 0
    assert found["growth"] < GROWTH


def test_handles_that_nobody_lets_go_of_are_seen_as_growth() -> None:
    assert left("--keep")["growth"] > GROWTH
