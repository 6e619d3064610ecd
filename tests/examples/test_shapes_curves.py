"""curves.py: what it measures at every point, and that both files come out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import curves
import pytest
from PIL import Image


def test_every_point_is_measured_once_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []
    evaluate = curves.evaluate_shapes

    def recorded(*args: Any, **options: Any) -> Any:
        asked.append((options["steps"], options["guidance"]))
        return evaluate(*args, **options)

    monkeypatch.setattr(curves, "evaluate_shapes", recorded)
    monkeypatch.setattr(curves, "GUIDANCE", (1.0, 2.0))
    monkeypatch.setattr(curves, "STEPS", (1, 3))
    monkeypatch.setattr(curves, "AT_STEPS", 1)
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path / "curves"), "--samples", "1", "--dtype", "float32"])
    curves.main()
    assert asked == [(1, 1.0), (1, 2.0), (3, 2.0)]
    written = json.loads((tmp_path / "curves.json").read_text())
    assert [point["setting"] for point in written["guidance"]] == [1.0, 2.0]
    assert [point["setting"] for point in written["steps"]] == [1, 3]
    assert written["guidance"][1]["score"] == written["steps"][0]["score"]
    assert Image.open(tmp_path / "curves.png").size == (2 * curves.WIDTH, 2 * curves.HEIGHT)
