"""Where Ray is not installed, what needs it says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from flashjanus.cli import main


@pytest.mark.parametrize("command", ["batch", "serve"])
def test_it_says_what_to_install(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [*sys.modules]:
        if name == "ray" or name.startswith(("ray.", "flashjanus.cluster.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a red circle"}) + "\n")
    own = {"batch": [str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")], "serve": ["--port", "9"]}
    assert main([command, *own[command], "--ray", "auto"]) == 2
    assert 'pip install "flashjanus[ray]"' in capsys.readouterr().err
