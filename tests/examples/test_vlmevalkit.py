"""JanusFlow in VLMEvalKit: a stand-in of the parts that it meets there calls it as the harness does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from flashjanus.errors import InputError
from PIL import Image, ImageDraw

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vlmevalkit"
KINDS = {"POPE": "Y/N", "MMBench": "MCQ", "MMVet": "VQA", "OCRVQA": "VQA"}
RUN = """
from vlmeval.config import supported_VLM
CALLS = []
def load_env(): CALLS.append("env")
def main():
    import sys
    CALLS.append((sys.argv[1:], supported_VLM["JanusFlow-shapes"]))
"""


class BaseModel:
    """VLMEvalKit's, as far as a model that is no API needs it: parts are dicts of type and value."""

    INTERLEAVE = False
    allowed_types: Any = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func: Any = None

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def set_dump_image(self, dump_image_func: Any) -> None:
        self.dump_image_func = dump_image_func

    def dump_image(self, line: Any, dataset: str) -> list[str]:
        found: list[str] = self.dump_image_func(line)
        return found

    def generate(self, message: Any, dataset: str | None = None) -> str:
        parts = [dict(type="text", value=message)] if isinstance(message, str) else message
        assert all(part["type"] in self.allowed_types for part in parts)
        answer: str = self.generate_inner(parts, dataset)  # type: ignore[attr-defined]
        return answer

    def chat(self, messages: Any, dataset: str | None = None) -> str:
        for turn in messages:
            if isinstance(turn["content"], str):
                turn["content"] = [dict(type="text", value=turn["content"])]
        answer: str = self.chat_inner(messages, dataset=dataset)  # type: ignore[attr-defined]
        return answer


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of VLMEvalKit that the example imports."""
    contents = {
        "vlmeval": {},
        "vlmeval.config": {"supported_VLM": {}},
        "vlmeval.dataset": {"DATASET_TYPE": lambda dataset: KINDS[dataset]},
        "vlmeval.vlm": {},
        "vlmeval.vlm.base": {"BaseModel": BaseModel},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, short = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], short, module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "janusflow", raising=False)


@pytest.fixture
def example(harness: None) -> Any:
    return loaded("janusflow")


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"vlmevalkit_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    paths = []
    for color in ("red", "blue"):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=color)
        paths.append(str(tmp_path_factory.mktemp("pictures") / f"{color}.png"))
        picture.save(paths[-1])
    return paths


def test_rows_of_a_data_set_are_answered(example: Any, pictures: list[str]) -> None:
    """As `infer_data` does it, row by row."""
    model = example.MODELS["JanusFlow-shapes"](device="cpu", dtype="float32", max_new_tokens=8)
    model.set_dump_image(lambda line: [line["image_path"]])
    question = "What color is the circle?"
    data = pd.DataFrame([dict(index=k, question=question, image_path=path) for k, path in enumerate(pictures)])
    answers = []
    for k in range(len(data)):
        assert model.use_custom_prompt("MMVet")
        message = model.build_prompt(data.iloc[k], dataset="MMVet")
        answers.append(model.generate(message=message, dataset=None))
    assert ["red" in answers[0], "blue" in answers[1]] == [True, True]
    part = {"type": "image", "image": pictures[0]}
    asked = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
    alone = model.model.chat([{"role": "system", "content": ""}, *asked], max_new_tokens=8)
    assert answers[0] == alone


@pytest.mark.parametrize(
    ("dataset", "line", "text"),
    [
        (
            "POPE",
            dict(question="Is there a dog? Please answer yes or no."),
            "Is there a dog?\nAnswer the question using a single word or phrase.",
        ),
        (
            "MMBench",
            dict(question="Which?", hint="Look.", A="a cat", B="a dog", C=float("nan")),
            "Hint: Look.\nWhich?\nA. a cat\nB. a dog\n\n"
            "Answer with the option's letter from the given choices directly.",
        ),
        ("MMBench", dict(question="Which?", hint=None), "Which?\nAnswer the question directly."),
        ("MMVet", dict(question="What?"), "What?"),
    ],
)
def test_prompts_are_those_of_janus(example: Any, dataset: str, line: dict[str, Any], text: str) -> None:
    model = example.JanusFlow("shapes")
    model.set_dump_image(lambda line: ["a.png", "b.png"])
    images = [dict(type="image", value="a.png"), dict(type="image", value="b.png")]
    assert model.build_prompt(pd.Series(line), dataset=dataset) == [*images, dict(type="text", value=text)]
    assert model.use_custom_prompt(dataset)
    assert not model.use_custom_prompt("OCRVQA")


def test_turns_and_images_keep_their_order(example: Any, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = example.JanusFlow("shapes", max_new_tokens=4)
    seen: list[Any] = []
    chat = model.model.chat
    monkeypatch.setattr(
        model.model, "chat", lambda messages, **options: seen.append(messages) or chat(messages, **options)
    )
    red, blue = (dict(type="image", value=path) for path in pictures)
    text = dict(type="text", value="What color is the circle?")
    turns = [
        dict(role="user", content=[red, text]),
        dict(role="assistant", content="red"),
        dict(role="user", content=[text, blue]),
    ]
    assert model.chat(turns, dataset="MMVet")
    assert model.generate("What is it?", dataset="OCRVQA") is not None
    system, first, answer, second = seen[0]
    assert system == {"role": "system", "content": example.STEP_BY_STEP}
    assert [part["type"] for part in first["content"]] == ["image", "text"]
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    assert second["content"][1] == {"type": "image", "image": pictures[1]}
    assert seen[1][0] == {"role": "system", "content": ""}


def test_options_are_checked_before_the_model_is_loaded(example: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens: expected an integer"):
        example.JanusFlow("no such folder", max_new_tokens=0)
    with pytest.raises(AssertionError):  # VLMEvalKit's own, as videos are not among the types
        example.JanusFlow("shapes").generate([dict(type="video", value="a.mp4")])


def test_a_question_that_is_too_long_can_be_skipped(example: Any) -> None:
    """SKIP_ERR=1 skips what raises RuntimeError."""
    with pytest.raises(RuntimeError, match="512") as caught:
        example.JanusFlow("shapes").generate("Why? " * 600)
    assert isinstance(caught.value.__cause__, InputError)


def test_their_run_py_knows_the_models(harness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.py").write_text(RUN)
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "run.py"), "--model", "JanusFlow-shapes"])
    monkeypatch.delitem(sys.modules, "vlmevalkit_run", raising=False)
    loaded("run").main()
    calls = sys.modules["vlmevalkit_run"].CALLS
    assert [calls[0], calls[1][0]] == ["env", ["--model", "JanusFlow-shapes"]]
    janusflow = sys.modules["vlmeval.vlm"].JanusFlow
    assert calls[1][1].func is janusflow
    assert isinstance(calls[1][1](), janusflow)


def test_without_their_run_py_the_usage_is_said(monkeypatch: pytest.MonkeyPatch, harness: None) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--data", "MMStar"])
    with pytest.raises(SystemExit, match=r"usage: run\.py VLMEVALKIT/run\.py"):
        loaded("run").main()
