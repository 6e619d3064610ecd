"""`flashjanus batch --adapter`: which rows an adapter applies to, and what a change of it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flashjanus import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.checkpoint.adapters import fingerprint
from flashjanus.cli import main
from flashjanus.cluster.folder import verify
from flashjanus.cluster.rows import Row, Usual, read
from flashjanus.errors import CheckpointError
from PIL import Image
from small_adapter import write_adapter
from untrained_model import write_untrained_model

DRAW = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 5}
ASK = {"question": "What?", "max_new_tokens": 6}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model and the adapters ink and gold."""
    folder = tmp_path_factory.mktemp("adapted")
    write_untrained_model(folder / "model", layers=2)
    language = JanusFlowConfig.from_file(folder / "model/config.json").language
    for seed, name in enumerate(("ink", "gold")):
        write_adapter(folder / name, language, rank=2, seed=seed)
    return folder


def batch(
    place: Path, out: Path, rows: list[dict[str, Any]], *adapters: str | Path, flags: tuple[str, ...] = ()
) -> int:
    file = out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [word for one in adapters for word in ("--adapter", str(one))]
    return main(
        ["batch", str(file), "--out", str(out), "--model", str(place / "model"), "--dtype", "float32", *given, *flags]
    )


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_each_row_has_the_adapter_that_it_names(place: Path, tmp_path: Path) -> None:
    named = [None, "ink", "gold"]
    rows = [{**row, "adapter": name} for row in (DRAW, ASK) for name in named]
    assert batch(place, tmp_path / "out", [*rows, DRAW], place / "ink", f"gold={place / 'gold'}") == 0
    model = JanusFlow.from_pretrained(
        place / "model", dtype="float32", adapters={n: place / n for n in ("ink", "gold")}
    )
    made = records(tmp_path / "out")
    images = [tmp_path / "out" / one["files"][0]["file"] for one in made if one["files"]]
    for image, name in zip(images, [*named, None], strict=True):
        alone = model.generate_image("a red circle", num_inference_steps=2, seed=5, adapter=name).images[0]
        assert abs(np.asarray(Image.open(image), np.int16) - np.asarray(alone, np.int16)).max() <= 1
    question = [{"role": "user", "content": "What?"}]
    said = [model.chat(question, max_new_tokens=6, adapter=name) for name in named]
    assert [one["answer"] for one in made if one["kind"] == "answer"] == said
    assert len({*said}) > 1
    sources = [None if name is None else str(place / name) for name in named]
    assert [one.get("adapter") for one in made] == [*sources, *sources, None]
    texts = [Image.open(image).text for image in images]  # type: ignore[attr-defined]
    assert [text.get("adapter") for text in texts] == [*sources, None]
    assert verify(tmp_path / "out")["damaged"] == []


def test_a_single_adapter_applies_to_rows_that_set_none(place: Path, tmp_path: Path) -> None:
    assert batch(place, tmp_path / "out", [DRAW, {**DRAW, "adapter": None}, ASK], place / "ink") == 0
    ink = str(place / "ink")
    assert [one.get("adapter") for one in records(tmp_path / "out")] == [ink, None, ink]
    assert [one["options"].get("adapter") for one in records(tmp_path / "out")] == ["ink", None, "ink"]


def test_an_adapter_that_is_not_loaded_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [DRAW, {**DRAW, "adapter": "gold"}, {**ASK, "adapter": ["ink"]}, {**ASK, "adapter": 3}]
    with monkeypatch.context() as patched:
        patched.setattr(JanusFlow, "from_pretrained", None)  # --strict loads no model
        assert batch(place, tmp_path / "out", rows, place / "ink", flags=("--strict",)) == 2
    error = capsys.readouterr().err
    assert "line 2: adapter: expected one that --adapter loads ('ink'), got \"gold\"" in error
    assert "line 3: adapter: expected one that --adapter loads ('ink'), got " in error
    assert "line 4: adapter: expected the name of a loaded adapter" in error
    assert batch(place, tmp_path / "out", rows) == 1
    faults = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [one["line"] for one in faults] == [2, 3, 4]
    assert faults[0]["message"] == 'adapter: expected one that --adapter loads (none), got "gold"'
    assert batch(place, tmp_path / "other", rows, place / "silver") == 2
    assert "silver: no such folder; expected one that PEFT's save_pretrained wrote" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_row_depends_on_its_own_adapter_alone(place: Path, tmp_path: Path, capsys: Any) -> None:
    language = JanusFlowConfig.from_file(place / "model/config.json").language
    for name in ("one", "two"):
        write_adapter(tmp_path / name, language, rank=2)
    rows = [DRAW, {**DRAW, "adapter": "one"}, {**DRAW, "adapter": "two"}]
    adapters = tmp_path / "one", tmp_path / "two"
    assert batch(place, tmp_path / "out", rows, *adapters) == 0
    (tmp_path / "one").rename(tmp_path / "moved")
    assert batch(place, tmp_path / "out", rows, f"one={tmp_path / 'moved'}", adapters[1]) == 0
    write_adapter(tmp_path / "two", language, rank=2, seed=1)
    capsys.readouterr()
    assert batch(place, tmp_path / "out", rows, f"one={tmp_path / 'moved'}", adapters[1]) == 2
    assert "1 of 3 rows have changed in text, options, images, adapters or model" in capsys.readouterr().err


def test_rows_without_an_adapter_do_not_depend_on_what_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(DRAW))
    found = [[*read(file, Usual({"image": {}, "answer": {}}, 0, {}, adapters))] for adapters in ({}, {"ink": "hash"})]
    assert found[0] == found[1]
    assert isinstance(found[0][0], Row)


def test_a_fingerprint_is_of_what_the_files_hold(place: Path, tmp_path: Path) -> None:
    language = JanusFlowConfig.from_file(place / "model/config.json").language
    write_adapter(tmp_path / "again", language, rank=2)
    assert fingerprint(tmp_path / "again") == fingerprint(place / "ink") != fingerprint(place / "gold")
    write_adapter(tmp_path / "again", language, rank=2, lora_alpha=3)
    assert fingerprint(tmp_path / "again") != fingerprint(place / "ink")
    (tmp_path / "again/adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: no such file"):
        fingerprint(tmp_path / "again")
