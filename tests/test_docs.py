"""The samples of the pages in docs/ run as they are written; those of serving.md: serving/test_serving_page.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").rglob("*.md"))
PAGES = [page for page in PAGES if page.stem != "serving"]
SAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAMPLES = [(page, sample) for page in PAGES for sample in SAMPLE.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "sample"), SAMPLES, ids=[page.stem for page, _ in SAMPLES])
def test_a_sample_runs(page: Path, sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(sample, page.name, "exec"), names)
    if page.stem == "embedding":
        assert (tmp_path / "circle.png").stat().st_size > 0
