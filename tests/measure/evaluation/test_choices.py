"""Multiple-choice files in both styles, the prompt, the letter in a reply, and the accuracy."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from flashjanus.errors import InputError
from flashjanus.measure.evaluation.choices import evaluate_choices, letter_of, read_choices
from PIL import Image


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


def item(**fields: Any) -> dict[str, Any]:
    return {"question": "What is it?", "A": "a cat", "B": "a dog", "answer": "B", "category": "animals", **fields}


def written(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_mmbench_items_are_read(tmp_path: Path) -> None:
    encoded = base64.b64encode(png()).decode()
    items = [item(image=encoded, hint="Look.", C=3, D=None), item(image=f"data:image/png;base64,{encoded}", hint="nan")]
    path = tmp_path / "q.json"
    path.write_text(json.dumps(items).replace("null", "NaN"))
    (first, second), skipped = read_choices(path)
    assert first.prompt == (
        "Look.\nWhat is it?\nA. a cat\nB. a dog\nC. 3\nAnswer with the option's letter from the given choices directly."
    )
    assert second.prompt.startswith("What is it?\nA. a cat")
    assert (first.answer, first.category, skipped) == ("B", "animals", 0)
    for choice in (first, second):
        image = choice.image()
        assert image is not None
        assert image.size == (32, 32)


def test_seed_bench_items_are_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "17_3").write_bytes(png())
    seed = {"question": "Q", "choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w", "answer": "c"}
    document = {
        "question_type": {"Scene Understanding": 1},
        "questions": [
            {**seed, "data_id": "17_3", "data_type": "image", "question_type_id": 1},
            {**seed, "data_id": "clip.mp4", "data_type": "video", "question_type_id": 2},
            {**seed, "question_type_id": 9},
            {**seed},
        ],
    }
    choices, skipped = read_choices(written(tmp_path / "q.json", document), tmp_path / "images")
    assert [choice.category for choice in choices] == ["Scene Understanding", "type 9", "all"]
    assert [choice.picture is None for choice in choices] == [False, True, True]
    assert dict(choices[0].options) == {"A": "x", "B": "y", "C": "z", "D": "w"}
    assert (choices[0].answer, skipped) == ("C", 1)


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (item(question=None), "'question'"),
        (item(answer="C"), "'answer'"),
        (item(answer=None), "'answer'"),
        (item(answer=1), "'answer'"),
        (item(B=None), "'B'"),
        (item(A=["x"]), "'A'"),
        (item(hint=5), "'hint'"),
        (item(category=[]), "'category'"),
        (item(image="no.png"), "'image'"),
        (item(image="../q.json"), "'image'"),
        (item(image=7), "'image'"),
        (item(image="QUJD" * 60 + "Q"), "'image'"),
        ("text", "an object"),
    ],
)
def test_a_bad_item_is_refused_by_number_and_key(tmp_path: Path, bad: Any, key: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        read_choices(written(tmp_path / "q.json", [item(), bad]), folder)
    assert "item 1" in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("document", [[], {}, {"questions": []}, "{", "7", [item(data_type="video")]])
def test_a_file_without_questions_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InputError, match=r"q\.json"):
        read_choices(written(tmp_path / "q.json", document))


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    encoded = base64.b64encode(b"no picture" * 20).decode()
    choices, _ = read_choices(written(tmp_path / "q.json", [item(image="no.png"), item(image=encoded)]))
    for number, choice in enumerate(choices):
        with pytest.raises(InputError, match=f"item {number}: 'image': "):
            choice.image()


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("B.", "B"),
        ("B. a dog", "B"),
        ("(B) a dog", "B"),
        ("B: because", "B"),
        ("B) a dog", "B"),
        ("The answer is B.", "B"),
        ("answer: (b)", "B"),
        ("My Answer: A", "A"),
        ("the answer is B because", "B"),
        ("a dog", "B"),
        ("A dog.", "B"),
        ("a cat", "A"),
        ("E", None),
        ("Because", None),
        ("It is an animal", None),
        ("Bad", None),
        ("BB", None),
        ("b dog", None),
        ("B is it", None),
        ("a dog and a cat", None),
        ("a do", None),
        ("dog", None),
        ("no answer", None),
        ("(C) a dog", None),
        ("C. a dog", None),
        ("Not B", None),
        ("option (b) of two", "B"),
        ("B.a dog", "B"),
        ("A bird", None),
        ("the answer is a mystery", None),
        ("", None),
    ],
)
def test_the_letter_of_a_reply(reply: str, letter: str | None) -> None:
    assert letter_of(reply, {"A": "a cat", "B": "a dog."}) == letter


class Answers:
    """Answers conversation by conversation with the words given."""

    quantization = None

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self.asked: list[Any] = []

    def chat(self, messages: list[Any], **options: Any) -> list[str]:
        assert options == {"max_new_tokens": 8, "do_sample": False}
        self.asked += messages
        return [self.words.pop(0) for _ in messages]


def test_accuracy_by_category(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    items = [item(image="a.png"), item(), item(category="other"), item(category="other", answer="A")]
    choices, _ = read_choices(written(tmp_path / "q.json", items))
    model = Answers("B", "a cat", "hm", "(A)")
    report = evaluate_choices(model, choices, skipped=5)  # type: ignore[arg-type]
    assert {name: (share.correct, share.total) for name, share in report.categories.items()} == {
        "animals": (1, 2),
        "other": (1, 2),
    }
    value = json.loads(json.dumps(report.to_json()))
    assert (value["overall"]["score"], value["unread_replies"], value["skipped_videos"]) == (0.5, 1, 5)
    assert [part["type"] for part in model.asked[0][0]["content"]] == ["image", "text"]
    assert model.asked[1][0]["content"] == [{"type": "text", "text": choices[1].prompt}]
