"""`flashjanus batch` without a cluster: what is done is done once, and what is not is said."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flashjanus import JanusFlow
from flashjanus.cli import main
from flashjanus.cluster.batch import Batch
from flashjanus.cluster.flight import served
from flashjanus.cluster.folder import Folder, verify
from flashjanus.cluster.items import items
from flashjanus.cluster.rows import Fault, Row, Usual, derived_seed, read, stem
from flashjanus.errors import DeviceError, InputError
from flashjanus.serving.backend import ThreadBackend
from flashjanus.serving.messages import Answered, Failure, ImageRequest, Usage
from PIL import Image

USUAL = Usual({"image": {}, "answer": {}}, 0, {"name": "shapes"})
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red circle", "num_inference_steps": 3},
    {"id": "two", "prompt": "a blue square", "num_inference_steps": 3, "num_images_per_prompt": 2, "seed": 5},
    {"id": "seen", "question": "What shape is it?", "image": "it.png", "max_new_tokens": 6},
    {"id": 7, "question": "Is a circle round?", "max_new_tokens": 6},
    {"id": "A/b", "prompt": "a green triangle", "num_inference_steps": 2, "guidance_interval": [0.1, 0.9]},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "it.png")
    return write(tmp_path / "rows.jsonl", ROWS)


def batch(*arguments: str | Path, dtype: str = "float32") -> int:
    return main(["batch", *map(str, arguments), "--dtype", dtype])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*.*")) if one.is_file()}


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_items_are_what_the_model_gives_for_each_row_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert batch(file, "--out", out) == 0
    by_id = {entry["id"]: entry for entry in manifest(out)}
    assert list(by_id) == ["000001", "two", "seen", "7", "A/b"]
    model = JanusFlow.from_pretrained("shapes", dtype="float32")
    alone = model.generate_image("a blue square", num_inference_steps=3, num_images_per_prompt=2, seed=5)
    drawn = [np.asarray(Image.open(out / one["file"])) for one in by_id["two"]["files"]]
    assert by_id["two"]["seeds"] == [5, 6]
    np.testing.assert_array_equal(drawn, [np.asarray(image) for image in alone.images])
    content = [{"type": "image", "image": str(tmp_path / "it.png")}, {"type": "text", "text": "What shape is it?"}]
    assert by_id["seen"]["answer"] == model.chat([{"role": "user", "content": content}], max_new_tokens=6)
    assert by_id["000001"]["seeds"] == [derived_seed(0, "000001")]
    assert Image.open(out / by_id["A/b"]["files"][0]["file"]).text["prompt"] == ("a green triangle")  # type: ignore[attr-defined]
    assert verify(out) == dict(verified=5, files=9, damaged=[], unlisted=[], failed=0, left=0)


def test_a_second_run_does_only_what_is_missing_and_gives_the_same(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert batch(file, "--out", out) == 0
    whole = contents(out)
    (out / "images" / "two.2.png").unlink()
    (out / "records" / "7.json").write_text('{"id": "7", "ki')  # as a power failure leaves it
    capsys.readouterr()
    assert batch(file, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 2
    assert contents(out) == whole
    monkeypatch.setattr(JanusFlow, "from_pretrained", None)  # nothing is left, so no model is loaded
    assert batch(file, "--out", out) == 0
    assert contents(out) == whole


def test_what_has_changed_is_refused_and_done_again_when_asked(file: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert batch(file, "--out", out) == 0
    whole = contents(out)
    write(file, [{**ROWS[0], "num_inference_steps": 4}, {**ROWS[1], "num_images_per_prompt": 1}, *ROWS[2:]])
    capsys.readouterr()
    assert batch(file, "--out", out) == 2
    error = capsys.readouterr().err
    assert "2 of 5 rows have changed" in error
    assert "000001, two" in error
    assert contents(out) == whole
    assert batch(file, "--out", out, "--redo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 2
    assert verify(out)["unlisted"] == []
    assert not (out / "images" / "two.2.png").exists()
    assert batch(file, "--out", out, dtype="bfloat16") == 2
    assert "dtype was 'float32' and is 'bfloat16'" in capsys.readouterr().err
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "it.png")
    assert batch(file, "--out", out) == 2
    assert "1 of 5 rows have changed" in capsys.readouterr().err


def test_default_options_written_out_are_no_change(file: Path, tmp_path: Path) -> None:
    rows = {one.id: one.digest for one in read(file, USUAL) if isinstance(one, Row)}
    write(file, [{**ROWS[0], "preset": "exact", "best_of": None}, *ROWS[1:]])
    assert {one.id: one.digest for one in read(file, USUAL) if isinstance(one, Row)} == rows


def test_bad_rows_are_listed_and_the_others_done(file: Path, tmp_path: Path, capsys: Any) -> None:
    bad = [
        '{"prompt": "x"\n',
        {"id": "typo", "prompt": "x", "guidance_scal": 2},
        {"id": "two", "prompt": "x"},
        {"id": "range", "prompt": "x", "num_inference_steps": 0},
        {"id": "nan", "prompt": "x", "seed": -1},
        {"id": "both", "prompt": "x", "question": "y"},
        {"id": "gone", "question": "y", "image": "gone.png"},
        {"id": "text", "question": "y", "image": "rows.jsonl"},
        {"id": "mixed", "prompt": "x", "max_new_tokens": 3},
        '{"prompt": "x", "guidance_scale": NaN}\n',
        '"x"\n',
        "\n",
    ]
    write(file, [*ROWS, *bad])
    out = tmp_path / "out"
    assert batch(file, "--out", out, "--strict") == 2
    error = capsys.readouterr().err
    assert "line 6" in error
    assert "line 7: guidance_scal: expected an option of a request" in error
    assert not out.exists()
    assert batch(file, "--out", out, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [found[name] for name in ("rows", "done", "failed", "left")] == [16, 5, 11, 0]
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [one["line"] for one in failures] == list(range(6, 17))
    named = ("JSON", "guidance_scal", "line 2", "steps", "seed", "prompt and question", "gone.png", "image")
    for one, words in zip(failures, (*named, "max_new_tokens", "NaN", "object"), strict=True):
        assert words in one["message"]
        assert one["error"] == "InputError"
    assert verify(out)["failed"] == 11
    assert main(["batch", "--verify", str(out)]) == 1
    write(file, ROWS)
    assert batch(file, "--out", out) == 0
    assert (out / "failures.jsonl").read_text() == ""
    assert main(["batch", "--verify", str(out)]) == 0


def test_verify_finds_what_is_damaged(file: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert batch(file, "--out", out) == 0
    (out / "images" / "000001.png").write_bytes(b"x")
    (out / "records" / "7.json").unlink()
    (out / "images" / "stray.png").write_bytes(b"x")
    capsys.readouterr()
    assert main(["batch", "--verify", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found["damaged"]] == ["000001", "7"]
    assert found["unlisted"] == ["images/stray.png"]
    lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / "manifest.jsonl").write_text("".join([*lines[:-1], lines[0], "{"]))
    assert {"this id is listed twice", "manifest.jsonl: line 6 is damaged"} <= {
        one["reason"] for one in verify(out)["damaged"]
    }
    assert main(["batch", "--verify", str(tmp_path)]) == 2


def test_another_run_in_the_same_folder_is_refused(file: Path, tmp_path: Path, capsys: Any) -> None:
    with Folder(tmp_path / "out").writing():
        assert batch(file, "--out", tmp_path / "out") == 2
    assert "another run" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_goes_on(number: int, tmp_path: Path, spawn: Callable[..., Any]) -> None:
    rows = [{"prompt": f"circle {n}", "num_inference_steps": 30} for n in range(8)]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    arguments = ("batch", file, "--out", out, "--live-images", "2", "--dtype", "float32")
    process = spawn(*arguments)
    deadline = time.monotonic() + 60
    while not list((out / "records").glob("*.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    done = {one: (out / one).read_bytes() for one in contents(out) if one.startswith("images/")}
    records = [*(out / "records").glob("*.json")]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert 0 < len(records) < 8
    assert all(json.loads(one.read_text())["digest"] for one in records)
    if number != signal.SIGKILL:
        assert f"{len(records)} done, 0 failed, {8 - len(records)} left; the same command continues" in error.decode()
        assert verify(out)["damaged"] == []
    assert main([str(one) for one in arguments]) == 0
    assert len(manifest(out)) == 8
    assert verify(out)["damaged"] == verify(out)["unlisted"] == []
    recorded = {f"images/{one.stem}.png" for one in records}
    assert all((out / name).read_bytes() == data for name, data in done.items() if name in recorded)


class Refuses:
    """A backend whose requests end at once: in its order, with Answered or with what it fails of."""

    ready = True

    def __init__(self, fails: dict[str, Exception]) -> None:
        self.fails, self.flying, self.most, self.cancelled = fails, 0, 0, []

    def submit(self, request: Any, tell: Any) -> str:
        self.flying += 1
        self.most = max(self.most, self.flying)
        error = self.fails.get(request.prompt)
        if isinstance(error, DeviceError):
            self.ready = False
        tell(Failure(error) if error else Answered("", "stop", Usage(1, 0, 1)))
        return str(request.prompt)

    def cancel(self, ticket: str) -> None:
        self.cancelled.append(ticket)


def test_a_bounded_number_is_in_flight_and_an_engine_that_ends_ends_the_run() -> None:
    backend = Refuses({"2": InputError("no"), "5": DeviceError("dead")})
    found = []

    def all_of_them() -> None:
        for key, result in served(backend, range(9), lambda n: ImageRequest(prompt=str(n)), 3):  # type: ignore[arg-type]
            found.append((key, type(result)))
            backend.flying -= 1

    with pytest.raises(DeviceError):
        all_of_them()
    assert found[:3] == [(0, Answered), (1, Answered), (2, InputError)]
    assert backend.most == 3
    assert "5" in backend.cancelled


def test_closing_results_cancels_what_is_in_flight(file: Path, tmp_path: Path) -> None:
    backend = ThreadBackend(JanusFlow.from_pretrained("shapes", dtype="float32"))
    rows = list(read(write(file, [{"prompt": f"{n}", "num_inference_steps": 9} for n in range(9)]), USUAL))
    results = items(backend, [row for row in rows if isinstance(row, Row)], tmp_path)
    next(results)
    results.close()
    assert backend.drain(30)
    backend.close()


def test_names_are_one_to_one_and_lead_nowhere_else() -> None:
    ids = ["a", "A", "a.b", "a-b", "../a", "a/b", "é", "x" * 200, "x" * 199, ".", "con 1", "a.1"]
    names = [stem(id) for id in ids]
    assert len({name.lower() for name in names}) == len(ids)
    assert names[0] == "a"
    assert all(name.replace(".", "").replace("-", "").replace("_", "").isalnum() or name for name in names)
    assert not any("/" in name or name.startswith(".") for name in names)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "regular file"),
        (tmp_path / "gone", "No such"),
        (write(tmp_path / "e", []), "empty"),
    ):
        with pytest.raises(InputError, match=words):
            Batch.read(path, USUAL, Folder(tmp_path), False)


def test_lines_that_are_too_long_or_no_text_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashjanus.cluster.rows.LONGEST_LINE", 100)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "' + b"x" * 450 + b'"}\n{"prompt": "\xff"}\n{"prompt": "b"}'
    )
    found = list(read(path, USUAL))
    assert [type(one) for one in found] == [Row, Fault, Fault, Row]
    assert [one.line for one in found] == [1, 2, 3, 4]
