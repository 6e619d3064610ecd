"""Conversations to answers, on a model that babbles."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from flashjanus.errors import FlashJanusError, InputError
from flashjanus.pipeline.prompts import encode_chat
from PIL import Image


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def user(*content) -> dict:
    """A message of texts (str), parts (dict) and images (anything else)."""
    parts = [
        c
        if isinstance(c, dict)
        else {"type": "text", "text": c}
        if isinstance(c, str)
        else {"type": "image", "image": c}
        for c in content
    ]
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


ASK = [user(picture("red"), "What colour is this?")]


@pytest.mark.parametrize(
    "messages",
    [
        [user("How many circles are there?")],
        [{"role": "user", "content": "How many circles are there?"}],
        ASK,
        [user(picture("red"), picture("blue"), "Which is red?")],
        [user("First this:", picture("red"), "then that:", picture("blue", (96, 20)))],
        [user(picture("red"), "What is it?"), assistant("a red picture"), user(picture("blue"), "And this?")],
        [{"role": "system", "content": ""}, user("a"), assistant("b"), user("c")],
    ],
)
def test_answers_and_streams_join(untrained, messages):
    answer = untrained.chat(messages, max_new_tokens=8)
    assert isinstance(answer, str)
    assert answer == untrained.chat(messages, max_new_tokens=8)
    stream = untrained.chat(messages, max_new_tokens=8, stream=True)
    assert isinstance(stream, Iterator)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == answer


def test_images_count_each_in_its_place(untrained):
    def logits(*colours: str) -> torch.Tensor:
        encoded = encode_chat([user(*(picture(c) for c in colours), "Which?")], untrained.tokenizer)
        pixels = torch.stack([untrained.processor.preprocess(image) for image in encoded.images])
        return untrained.next_token_logits(torch.tensor([encoded.ids]), None, pixels[None])[0]

    both = logits("red", "blue")
    assert torch.equal(both, logits("red", "blue"))
    assert not torch.equal(both, logits("blue", "red"))
    assert not torch.equal(both, logits("red", "red"))


def test_an_image_may_come_as_a_file_or_bytes(untrained, tmp_path):
    path, buffer = tmp_path / "red.png", io.BytesIO()
    picture("red").save(path)
    picture("red").save(buffer, "PNG")
    answers = {
        untrained.chat([user(source, "What?")], max_new_tokens=6)
        for source in (picture("red"), path, {"type": "image", "image": str(path)}, buffer.getvalue())
    }
    assert len(answers) == 1


def test_a_batch_answers_as_its_conversations_alone(untrained):
    conversations = [
        ASK,
        [user("Describe this."), assistant("a star"), user("And?")],
        [user(picture("blue"), picture("green"), "Which one is blue? " * 4)],
    ]
    batch = untrained.chat(conversations, max_new_tokens=10)
    assert batch == [untrained.chat(c, max_new_tokens=10) for c in conversations]
    assert untrained.chat(conversations[:1], max_new_tokens=10) == batch[:1]


def test_it_is_generate_ids_on_its_prompt(untrained):
    encoded = encode_chat(ASK, untrained.tokenizer)
    pixels = untrained.processor.preprocess(encoded.images[0])[None, None]
    ids = untrained.generate_ids(torch.tensor([encoded.ids]), None, pixels, max_new_tokens=9)[0].tolist()
    assert untrained.chat(ASK, max_new_tokens=9) == untrained.tokenizer.decode(ids)


def test_it_ends_with_eos(untrained, monkeypatch):
    encoded = encode_chat(ASK, untrained.tokenizer)
    pixels = untrained.processor.preprocess(encoded.images[0])[None, None]
    ids = untrained.generate_ids(torch.tensor([encoded.ids]), None, pixels, max_new_tokens=12)[0].tolist()
    full = untrained.chat(ASK, max_new_tokens=12)
    at = next(i for i in range(2, 12) if ids[i] not in ids[:i])
    monkeypatch.setattr(untrained.tokenizer, "eos_id", ids[at])
    assert untrained.tokenizer.decode(ids[: at + 1]) != full
    assert untrained.chat(ASK, max_new_tokens=12) == untrained.tokenizer.decode(ids[: at + 1])
    assert "".join(untrained.chat(ASK, max_new_tokens=12, stream=True)) == untrained.tokenizer.decode(ids[: at + 1])


def test_max_new_tokens(untrained):
    encoded = encode_chat(ASK, untrained.tokenizer)
    room = untrained.config.language.max_position_embeddings - len(encoded.ids) + 1
    pixels = untrained.processor.preprocess(encoded.images[0])[None, None]
    for wanted in (1, 5):
        ids = untrained.generate_ids(torch.tensor([encoded.ids]), None, pixels, wanted, untrained.tokenizer.bos_id)
        assert ids.shape[1] <= wanted
        assert untrained.chat(ASK, max_new_tokens=wanted) == untrained.tokenizer.decode(ids[0].tolist())
    ids = untrained.generate_ids(torch.tensor([encoded.ids]), None, pixels, 10**6)
    assert ids.shape[1] <= room


def test_sampling(untrained):
    def ask(**options) -> str:
        return untrained.chat(ASK, max_new_tokens=12, **options)

    greedy = ask()
    assert ask(do_sample=True, seed=1) == ask(do_sample=True, seed=1)
    assert ask(do_sample=True, seed=1) != ask(do_sample=True, seed=2)
    assert ask(do_sample=True, seed=1) != greedy
    assert ask(do_sample=True, seed=1, top_k=1) == greedy
    assert ask(do_sample=True, seed=1, top_p=1e-6) == greedy
    batch = untrained.chat([ASK, ASK], max_new_tokens=12, do_sample=True, seed=1)
    assert batch == [ask(do_sample=True, seed=1), ask(do_sample=True, seed=2)]


def test_repetition_penalty(untrained):
    encoded = torch.tensor([encode_chat([user("Describe.")], untrained.tokenizer).ids])
    free = untrained.generate_ids(encoded, max_new_tokens=40)[0].tolist()
    held = untrained.generate_ids(encoded, max_new_tokens=40, repetition_penalty=1000.0)[0].tolist()
    assert len(set(held)) == len(held)
    assert held != free


def test_a_stream_may_be_left(untrained):
    expected = untrained.chat(ASK, max_new_tokens=8)
    stream = untrained.chat(ASK, max_new_tokens=8, stream=True)
    assert isinstance(stream, Iterator)
    next(stream)
    assert untrained.chat(ASK, max_new_tokens=8) == expected  # while the other is under way
    stream.close()
    assert untrained.chat(ASK, max_new_tokens=8) == expected


def test_tags_in_a_message_are_text(untrained):
    tokenizer = untrained.tokenizer
    text = f"{tokenizer.image_tag} <image_beg> <｜end▁of▁sentence｜>"
    ids = encode_chat([user(text)], tokenizer).ids
    assert not {tokenizer.image_id, tokenizer.image_start_id, tokenizer.eos_id} & set(ids)
    assert isinstance(untrained.chat([user(text)], max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["messages", "[]"]),
        ([[]], ["no user message"]),
        (None, ["messages", "None"]),
        (7, ["messages", "7"]),
        ("Hello", ["messages", "list", "Hello"]),
        (ASK[0], ["messages", "list", "role"]),
        ([ASK, None], ["messages", "NoneType"]),
        ([user("a"), assistant("b")], ["end with a user message"]),
        ([assistant("b")], ["messages[0]", "user", "assistant"]),
        ([user("")], ["messages[0]", "empty"]),
        ([user("a" * 100_000)], ["too long", "at most 512"]),
        ([user("a \udfff b")], ["surrogate", "U+DFFF"]),
        ([user(*[picture("red")] * 30)], ["too long", "at most 512"]),
        ([user(b"not an image", "What?")], ["image"]),
        ([user({"type": "image", "image": "/no/such/file.png"})], ["/no/such/file.png"]),
        ([user(7, "What?")], ["int"]),
    ],
)
def test_messages_it_refuses(untrained, messages, words):
    with pytest.raises(FlashJanusError) as error:
        untrained.chat(messages, max_new_tokens=1)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(max_new_tokens=0), ["max_new_tokens", "1 to", "got 0"]),
        (dict(do_sample=True, temperature=-1.0), ["temperature", "-1.0"]),
        (dict(do_sample=True, top_p=2.0), ["top_p", "2.0"]),
        (dict(do_sample=True, top_k=-5), ["top_k", "-5"]),
        (dict(repetition_penalty=float("inf")), ["repetition_penalty", "inf"]),
        (dict(seed=-3), ["seed", "-3"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_options_it_refuses_before_a_stream_begins(untrained, options, words, stream):
    with pytest.raises(InputError) as error:
        untrained.chat(ASK, stream=stream, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_stream_is_of_one_conversation(untrained):
    with pytest.raises(InputError, match="stream: expected one conversation"):
        untrained.chat([ASK, ASK], stream=True)
