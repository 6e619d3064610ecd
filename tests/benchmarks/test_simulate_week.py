"""The report of a simulated week, of few requests: its tables and its plot have all that was simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import simulate_week


def test_the_report_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate_week.main(["--requests", "2000", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    assert "none is measured" in said
    rows = [found["week"], *found["days"], *found["bursts"], *found["fleets"]]
    assert said.count("\n| ") == len(rows)
    for one in rows:
        assert one["served"] + one["refused"] + one["late"] == pytest.approx(1)
    assert len(found["hours"]) == 7 * 24
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_the_law_gives_the_times_that_it_was_made_of() -> None:
    evaluations, _ = simulate_week.LAW.rates(1, 0)
    assert 1 / evaluations == pytest.approx(simulate_week.STEP)
    evaluations, _ = simulate_week.LAW.rates(16, 0)
    assert 30 / evaluations + 16 * simulate_week.VAE == pytest.approx(16 / 6.6)
    _, tokens = simulate_week.LAW.rates(0, 1)
    assert 1 / tokens == pytest.approx(simulate_week.TOKEN)
