"""`ask`, `plan` and `inspect`, with a stand-in for the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from flashjanus.cli.plan import PROGRAMS
from flashjanus.errors import InputError
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for i, size in enumerate([(8, 6), (4, 4)]):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", size, (i, 0, 0)).save(path)
        paths.append(str(path))
    return paths


def test_ask_streams_the_answer(cli, model, images: list[str]) -> None:
    result = cli("ask", images[0], "what is it?")
    assert (result.code, result.out) == (0, "a red circle\n")
    called = model.called("chat")
    content = called["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image", "text"]
    assert content[0]["image"].size == (8, 6)
    assert content[1]["text"] == "what is it?"
    assert called["stream"] is True
    assert called["do_sample"] is False
    assert called["max_new_tokens"] == 512


def test_ask_leaves_out_the_space_that_answers_begin_with(cli, model, images: list[str]) -> None:
    model.answer = (" ", "", " a", " red circle")
    assert cli("ask", images[0], "what is it?").out == "a red circle\n"
    assert cli("ask", images[0], "what is it?", "--json").json["answer"] == "a red circle"


def test_ask_several_images_in_order(cli, model, images: list[str]) -> None:
    assert cli("ask", images[1], "compare", "--image", images[0], "--image", images[1]).code == 0
    content = model.called("chat")["messages"][0]["content"]
    assert [part["image"].size for part in content[:-1]] == [(4, 4), (8, 6), (4, 4)]


def test_ask_options(cli, model, images: list[str]) -> None:
    options = ["--max-new-tokens", "9", "--top-k", "5", "--top-p", "0.5", "--temperature", "0.7", "--seed", "3"]
    options += ["--stop", "\n", "--stop", "User:"]
    assert cli("ask", images[0], "q", *options, "--repetition-penalty", "1.2").code == 0
    called = model.called("chat")
    del called["messages"]
    assert called == {
        "max_new_tokens": 9,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "seed": 3,
        "stop": ["\n", "User:"],
        "stream": True,
    }


@pytest.mark.parametrize("option", ["--temperature=0", "--top-k=-1"])
def test_ask_takes_what_others_call_greedy_and_all_tokens(cli, model, images: list[str], option: str) -> None:
    name, value = option.removeprefix("--").replace("-", "_", 1).split("=")
    for arguments in ([option], option.split("=")):
        assert cli("ask", images[0], "q", *arguments).code == 0
        assert model.calls.pop()[1][name] == int(value)


def test_an_empty_stop_is_refused_before_the_model_loads(cli, model, images: list[str]) -> None:
    result = cli("ask", images[0], "q", "--stop", "x", "--stop", "")
    assert (result.code, "--stop: expected text" in result.err) == (2, True)
    assert model.calls == []


def test_ask_do_sample_alone_keeps_the_models_defaults(cli, model, images: list[str]) -> None:
    assert cli("ask", images[0], "q", "--do-sample").code == 0
    called = model.called("chat")
    assert called["do_sample"] is True
    assert "temperature" not in called


def test_ask_json(cli, model, images: list[str]) -> None:
    value = cli("ask", images[0], "q", "--image", images[1], "--json").json
    assert value.pop("seconds") >= 0
    assert value == {
        "answer": "a red circle",
        "question": "q",
        "images": images,
        "model": "shapes",
        "device": "cpu",
        "dtype": "float32",
        "quantization": None,
        "numerics": "exact",
    }


def test_ask_a_bad_image_fails_before_the_model_loads(cli, model, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    for name in ("text.png", "absent.png", "."):
        result = cli("ask", tmp_path / name, "q", "--json")
        assert result.code == 2
        assert result.json["error"]["type"] == "InputError"
        assert str(tmp_path) in result.json["error"]["message"]
    assert model.calls == []


def test_ask_fails_in_the_middle(cli, model, images: list[str]) -> None:
    model.fail = InputError("too long")
    result = cli("ask", images[0], "q")
    assert result.code == 2
    assert result.err.endswith("flashjanus: error: too long\n")
    assert cli("ask", images[0], "q", "--json").json == {"error": {"type": "InputError", "message": "too long"}}


BUCKETS = "buckets: rows as asked; prompt_tokens multiples of 16; steps as asked; new_tokens as asked\n"


def test_plan(cli, model) -> None:
    assert cli("plan").out == f"plan of flow_step\n\n{BUCKETS}"
    assert model.called("plan") == {"program": "flow_step", "rows": 1, "prompt_tokens": 64, "steps": 30}


def test_plan_why(cli, model) -> None:
    out = cli("plan", "--program", "prefill", "--rows", "3", "--prompt-tokens", "5", "--steps", "2", "--why").out
    assert out == f"plan of prefill\n\nwhy of prefill\n\n{BUCKETS}"
    assert model.called("plan") == {"program": "prefill", "rows": 3, "prompt_tokens": 5, "steps": 2}


def test_plan_all(cli, model) -> None:
    assert cli("plan", "--program", "all").out.split("\n\n") == [*(f"plan of {p}" for p in PROGRAMS), BUCKETS]
    value = cli("plan", "--program", "all", "--json").json
    assert list(value["plans"]) == list(PROGRAMS)
    assert value["plans"]["prefill"] == {"program": "prefill", "rows": 1, "prompt_tokens": 64, "steps": 30}
    assert value["device"] == "cpu"
    assert value["buckets"]["prompt_tokens"] == [16]


def test_buckets_and_eager_reach_the_model(cli, model) -> None:
    cli("plan", "--eager", "--buckets", "rows=4,1", "--buckets", "steps=30")
    options = model.called("from_pretrained")
    assert (options["cuda_graphs"], options["buckets"]) == (False, {"rows": [4, 1], "steps": [30]})
    result = cli("plan", "--buckets", "rows=few")
    assert (result.code, result.err.endswith("expected NAME=N[,N], e.g. rows=1,4, got 'rows=few'\n")) == (2, True)


def test_plan_of_an_impossible_bucket(cli, model) -> None:
    result = cli("plan", "--rows", "0")
    assert result.code == 2
    assert result.err.endswith("flashjanus: error: rows must be at least 1, got 0\n")


def test_inspect_a_missing_folder(cli, tmp_path: Path) -> None:
    result = cli("inspect", tmp_path / "absent", "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == "CheckpointError"
    assert str(tmp_path / "absent") in result.json["error"]["message"]


def test_inspect_an_empty_folder(cli, tmp_path: Path) -> None:
    result = cli("inspect", tmp_path)
    assert result.code == 2
    assert result.out == ""
    assert result.err == f"flashjanus: error: {tmp_path}: the folder is empty; expected config.json and weights\n"


def test_inspect_shows_what_is_wrong(cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    result = cli("inspect", tmp_path)
    assert result.code == 2
    assert "config.json" in result.out
    assert "no weights" in result.out
    assert "cannot be used as it is: " in result.err
    assert len(cli("inspect", tmp_path, "--json").json["problems"]) >= 2
