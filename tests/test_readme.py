"""The README's samples that need no download run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flashjanus import JanusFlow
from flashjanus.engine.ops.__main__ import table

README = Path(__file__).resolve().parents[1] / "README.md"
SAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
OURS = [sample for sample in SAMPLES if 'from_pretrained("shapes")' in sample]


def test_there_is_a_sample() -> None:
    assert OURS


@pytest.mark.parametrize("sample", OURS, ids=range(len(OURS)))
def test_a_sample_runs(sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(sample, README.name, "exec"), names)
    assert isinstance(names["model"], JanusFlow)


def test_the_table_of_kernels_is_the_registry_s() -> None:
    """An op that is new may be left out of it until somebody prints it again."""
    found = re.search(r"^\| op \|.*?(?=\n\n)", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = table().splitlines()
    printed = [line for line in lines if line in found[0].splitlines()]
    assert found[0].splitlines() == printed, (
        "run `python -m flashjanus.engine.ops` and put what it prints into the README"
    )
    assert len(printed) > 20
