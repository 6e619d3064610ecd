"""benchmarks/adapters.py: three kinds of step, timed by turns."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/adapters.py"


def test_steps_are_timed_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    written = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--small", "--layers", "1", "--rounds", "2", "--json", str(written)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads(written.read_text())
    assert found["arguments"]["rank"] == 16
    for clock in ("seconds", "CPU seconds"):
        assert {name: len(times) for name, times in found[clock].items()} == {"plain": 2, "room": 2, "one of four": 2}
        assert all(time > 0 for times in found[clock].values() for time in times)
    assert "one of four" in capsys.readouterr().out
