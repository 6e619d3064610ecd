from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import tokenizers
from flashjanus.errors import InputError
from flashjanus.inputs.prompts import (
    DEFAULT_SYSTEM_PROMPT,
    Control,
    encode_chat,
    encode_generation_prompt,
    encode_segments,
    generation_segments,
    segments_text,
)
from flashjanus.inputs.tokenizer import EOS, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = "<image_placeholder>"
CASES = json.loads((GOLDEN / "chat.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_files(
    GOLDEN / "tokenizer.json", GOLDEN / "tokenizer_config.json", GOLDEN / "processor_config.json"
)
CONTROLS = {0, 1, 2, 3, 378, 379, 380}


def pieces(text: str) -> list[str]:
    return [piece for piece in re.split(f"({IMAGE})", text) if piece]


def as_message(turn: dict) -> dict:
    parts = [
        {"type": "image", "image": "x.png"} if piece == IMAGE else {"type": "text", "text": piece}
        for piece in pieces(turn["content"])
    ]
    return {"role": turn["role"].lower(), "content": parts}


def user(content) -> dict:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("case", CASES)
def test_chat_equals_the_official_processor(case):
    prompt = encode_chat([as_message(turn) for turn in case["conversation"][:-1]], TOKENIZER)
    assert prompt.text == case["sft_format"]
    assert prompt.ids == case["input_ids"]
    assert len(prompt.images) == case["sft_format"].count(IMAGE)


@pytest.mark.parametrize("case", CASES)
def test_generation_equals_the_official_processor(case):
    tag = Control(IMAGE, (TOKENIZER.image_id,))  # here the official code leaves the tag as one token
    turns = [[tag if p == IMAGE else p for p in pieces(turn["content"])] for turn in case["conversation"][:-1]]
    segments = generation_segments(turns, TOKENIZER)
    assert segments_text(segments) == case["generation_prompt"]
    assert encode_segments(segments, TOKENIZER) == case["generation_ids"]


def test_generation_prompt_is_one_user_turn_and_the_tag():
    ids = encode_generation_prompt("  a red circle\n", TOKENIZER)
    assert ids[0] == TOKENIZER.bos_id
    assert ids[-1] == TOKENIZER.image_gen_id
    assert TOKENIZER.decode(ids) == "User: a red circle\n\nAssistant:"


def official_ids(text: str, images: int) -> list[int]:
    """Ids of the formatted prompt by the plain library, image tags expanded."""
    library = tokenizers.Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
    library.add_special_tokens([IMAGE, "<image_beg>", "<image_end>"])
    ids: list[int] = []
    for i in library.encode(text).ids:
        ids += [379, *[378] * 576, 380] if i == 378 else [i]
    assert ids.count(379) == images
    return ids


# Text with every kind of white space that strip() knows, and none of the tags.
words = st.text(st.sampled_from("ab:<｜\n\t \u2003\u3000\x1c图é"), max_size=12)


@settings(deadline=None)
@given(words, words, words, words, st.integers(0, 2))
def test_any_conversation_is_formatted_and_encoded_as_officially(system, first, answer, second, images):
    first, answer = first + "x", answer + "y"
    # a line break after the image, so that nothing is inserted
    parts = [{"type": "image", "image": i} for i in range(images)] + [{"type": "text", "text": "\n" + second + "z"}]
    messages = [
        {"role": "system", "content": system},
        user(first),
        {"role": "assistant", "content": answer},
        user(parts),
    ]
    prompt = encode_chat(messages, TOKENIZER)
    turns = f"User: {first.strip()}\n\nAssistant: {answer.strip()}{EOS}"
    last = (IMAGE * images + "\n" + second + "z").strip()
    text = ((system + "\n\n" if system else "") + turns + f"User: {last}\n\nAssistant:").strip()
    assert prompt.text == text
    assert prompt.ids == official_ids(text, images)
    assert prompt.images == list(range(images))


tagged = st.lists(
    st.one_of(st.sampled_from([IMAGE, "<image_beg>", EOS, "<｜begin▁of▁generation｜>"]), words), min_size=1
)


@settings(deadline=None)
@given(tagged.map("".join).filter(str.strip))
def test_tags_in_user_text_never_become_control_tokens(text):
    ids = encode_generation_prompt(text, TOKENIZER)
    assert not CONTROLS & set(ids[1:-1])
    assert TOKENIZER.decode(ids) == f"User: {text.strip()}\n\nAssistant:"
    prompt = encode_chat([{"role": "system", "content": text}, user(text)], TOKENIZER)
    assert not CONTROLS & set(prompt.ids[1:])
    assert prompt.images == []


def test_text_right_after_an_image_starts_a_line():
    def text_of(*parts):
        parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
        return encode_chat([{"role": "system", "content": ""}, user(parts)], TOKENIZER).text

    image = {"type": "image", "image": b"..."}
    assert text_of(image, "What?") == f"User: {IMAGE}\nWhat?\n\nAssistant:"
    assert text_of(image, "", "What?") == f"User: {IMAGE}\nWhat?\n\nAssistant:"
    assert text_of(image, " is it?") == f"User: {IMAGE} is it?\n\nAssistant:"
    assert text_of("  ", image, "  \n") == f"User: {IMAGE}\n\nAssistant:"
    assert text_of("Look:", image) == f"User: Look:{IMAGE}\n\nAssistant:"
    assert text_of(image) == f"User: {IMAGE}\n\nAssistant:"


def test_parts_as_transformers_and_openai_have_them():
    data = "data:image/png;base64,AA=="
    parts = [
        {"type": "image", "path": Path("a.png")},
        {"type": "image", "url": data},
        {"type": "image", "base64": "AA=="},
        {"type": "image", "base64": data, "url": None},
        {"type": "image_url", "image_url": {"url": data, "detail": "high"}},
        {"type": "image_url", "image_url": data},
        {"type": "input_image", "image_url": data},
        {"type": "input_text", "text": "Which?"},
    ]
    prompt = encode_chat([{"role": "user", "content": parts}], TOKENIZER)
    assert prompt.images == [Path("a.png"), data, "data:;base64,AA==", data, data, data, data]
    assert prompt.text.endswith(f"{IMAGE}\nWhich?\n\nAssistant:")


def test_a_message_may_have_keys_without_a_value():
    """As `choices[0].message.model_dump()` has them."""
    answer = {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None}
    plain = [user("a"), {"role": "assistant", "content": "red"}, user("b")]
    assert encode_chat([user("a"), answer, user("b")], TOKENIZER) == encode_chat(plain, TOKENIZER)


def test_images_are_returned_in_order_over_several_turns():
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [
        user([{"type": "image", "image": "a.png"}, url]),
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        user([{"type": "text", "text": "and "}, {"type": "image", "image": "c.png"}]),
    ]
    prompt = encode_chat(messages, TOKENIZER)
    assert prompt.images == ["a.png", "data:image/png;base64,AA==", "c.png"]
    assert prompt.ids.count(TOKENIZER.image_id) == 3 * 576
    assert prompt.text.startswith(DEFAULT_SYSTEM_PROMPT)


def test_deepseek_roles_are_control_tokens_where_the_tokenizer_has_them(tmp_path):
    processor = tmp_path / "processor_config.json"
    processor.write_text('{"sft_format": "deepseek"}')
    special = tmp_path / "special_tokens_map.json"
    plain = Tokenizer.from_files(GOLDEN / "tokenizer.json", None, processor)
    assert encode_chat([user("hi")], plain).text.endswith("<|User|>: hi\n\n<|Assistant|>:")
    special.write_text('{"additional_special_tokens": ["<|User|>", "<|Assistant|>"]}')
    known = Tokenizer.from_files(GOLDEN / "tokenizer.json", None, processor, special)
    ids = encode_chat([{"role": "system", "content": ""}, user("<|User|>")], known).ids
    assert ids.count(known.control_id("<|User|>")) == 1
    assert ids.count(known.control_id("<|Assistant|>")) == 1
    assert known.decode(ids) == ": <|User|>\n\n:"


def test_bos_is_left_out_where_the_checkpoint_says_so(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"add_bos_token": false}')
    t = Tokenizer.from_files(GOLDEN / "tokenizer.json", config, GOLDEN / "processor_config.json")
    assert encode_generation_prompt("red", t) == encode_generation_prompt("red", TOKENIZER)[1:]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\u3000"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(InputError, match="empty"):
        encode_generation_prompt(prompt, TOKENIZER)


@pytest.mark.parametrize("prompt", [None, 5, b"red", ["red"]])
def test_a_prompt_is_a_str(prompt):
    with pytest.raises(InputError, match=type(prompt).__name__):
        encode_generation_prompt(prompt, TOKENIZER)


def test_lone_surrogates_are_refused():
    with pytest.raises(InputError, match="surrogate"):
        encode_generation_prompt("a \ud83d circle", TOKENIZER)
    with pytest.raises(InputError, match="surrogate"):
        encode_chat([user("a \ud83d circle")], TOKENIZER)


@pytest.mark.parametrize("text", ["a" * 100_000, "a red circle " * 8_000, "图" * 100_000, "<image_beg>" * 9_000])
def test_a_very_long_prompt_is_refused_quickly(text):
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"too long: (at least )?\d+ tokens.*at most 16384"):
        encode_generation_prompt(text, TOKENIZER, max_tokens=16384)
    assert time.perf_counter() - start < 5


def test_a_huge_prompt_is_refused_before_it_is_encoded():
    start = time.perf_counter()
    with pytest.raises(InputError, match="at least"):
        encode_generation_prompt("red " * 10_000_000, TOKENIZER, max_tokens=1024)
    assert time.perf_counter() - start < 1


def test_the_limit_counts_every_token():
    length = len(encode_generation_prompt("a red circle", TOKENIZER))
    assert len(encode_generation_prompt("a red circle", TOKENIZER, max_tokens=length)) == length
    with pytest.raises(InputError, match=f"{length} tokens, at most {length - 1}"):
        encode_generation_prompt("a red circle", TOKENIZER, max_tokens=length - 1)
    with pytest.raises(InputError, match="too long: at least 58"):
        encode_chat([user([{"type": "image", "image": "x"}])], TOKENIZER, max_tokens=512)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no user message"),
        ([{"role": "system", "content": "x"}], "no user message"),
        ("hello", "list"),
        (user("hello"), "list"),
        (None, "list"),
        (["hello"], "expected {'role'"),
        ([{"role": "user"}], "keys"),
        ([{"role": "user", "content": "x", "images": ["a.png"]}], "images"),
        ([{"role": "User", "content": "x"}], "role must be"),
        ([{"role": ["user"], "content": "x"}], "role must be"),
        ([{"role": "assistant", "content": "x"}], "expected role 'user'"),
        ([user("x"), user("y")], "expected role 'assistant'"),
        ([user("x"), {"role": "assistant", "content": "y"}], "prefill"),
        ([user("x"), {"role": "system", "content": "y"}], "first"),
        ([user("")], "empty"),
        ([user(" \n")], "empty"),
        ([user([])], "empty"),
        ([user([{"type": "text", "text": ""}])], "empty"),
        ([user("x"), {"role": "assistant", "content": ""}, user("y")], "assistant message is empty"),
        ([user(None)], "content must be"),
        ([user(b"x")], "content must be"),
        ([user(["x"])], "part of type"),
        ([user([{"type": "audio", "audio": "x"}])], "audio"),
        ([user([{"type": "text"}])], "'text'"),
        ([user([{"type": "text", "text": 5}])], "must be a str"),
        ([user([{"type": "image"}])], "'image'"),
        ([user([{"type": "image", "path": "x", "url": "y"}])], "'path' and 'url'"),
        ([user([{"type": "image", "base64": b"x"}])], "'base64' must be a str"),
        ([user([{"type": "image_url"}])], "'image_url'"),
        ([user([{"type": "image_url", "image_url": {"detail": "low"}}])], "'url'"),
        ([user([{"type": "input_image", "file_id": "x"}])], "'image_url'"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "name"),
        ([{"role": "system", "content": [{"type": "image", "image": "x"}]}, user("x")], "only user messages"),
    ],
)
def test_malformed_conversations_are_refused(messages, message):
    with pytest.raises(InputError, match=message):
        encode_chat(messages, TOKENIZER)
