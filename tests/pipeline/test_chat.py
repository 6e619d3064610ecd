"""Conversations to answers, on a model that babbles."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from flashjanus.errors import FlashJanusError, InputError
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.inputs.answers import Answer
from flashjanus.inputs.prompts import encode_chat
from PIL import Image


def picture(color: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


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


ASK = [user(picture("red"), "What color is this?")]


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
    def logits(*colors: str) -> torch.Tensor:
        encoded = encode_chat([user(*(picture(c) for c in colors), "Which?")], untrained.tokenizer)
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


def test_an_image_may_come_as_others_have_it(untrained, tmp_path):
    path, buffer = tmp_path / "red.png", io.BytesIO()
    picture("red").save(path)
    picture("red").save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    url, array = f"data:image/png;base64,{encoded}", np.asarray(picture("red"))
    parts = [
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "url": url},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": buffer},
        {"type": "image", "image": array},
        {"type": "image", "image": torch.from_numpy(array.copy()).permute(2, 0, 1) / 255},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
    ]
    expected = untrained.chat(ASK, max_new_tokens=6)
    assert {untrained.chat([user(part, "What color is this?")], max_new_tokens=6) for part in parts} == {expected}
    for part in ({"type": "image", "url": "https://x/a.png"}, {"type": "image_url", "image_url": {"url": "http://x"}}):
        with pytest.raises(InputError, match="not fetched from the network"):
            untrained.chat([user(part, "What?")])


def test_threads_may_share_an_image_that_is_not_loaded_yet(untrained):
    values = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    expected = untrained.chat([user(Image.fromarray(values), "What?")], max_new_tokens=1)
    answers = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            message = user(Image.open(io.BytesIO(buffer.getvalue())), "What?")
            ask = partial(untrained.chat, [message], max_new_tokens=1)
            answers += [one.result() for one in [pool.submit(ask) for _ in range(4)]]
    assert answers == [expected] * 40


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


class TestStopStrings:
    @pytest.mark.parametrize("name", ["stop", "stop_strings"])
    def test_an_answer_ends_before_the_first(self, untrained, name):
        full = untrained.chat(ASK, max_new_tokens=30)
        for start, length in ((0, 1), (5, 1), (7, 3), (len(full) - 4, 4)):
            wanted = full[start : start + length]
            expected = full[: full.index(wanted)]
            for stop in (wanted, [wanted], ("\0 never", wanted)):
                assert untrained.chat(ASK, max_new_tokens=30, **{name: stop}) == expected
            assert "".join(untrained.chat(ASK, max_new_tokens=30, stream=True, **{name: wanted})) == expected
        assert untrained.chat(ASK, max_new_tokens=30, **{name: ["\0 never", full + "!"]}) == full
        assert untrained.chat(ASK, max_new_tokens=30, **{name: []}) == full

    def test_each_conversation_of_a_batch_ends_by_itself(self, untrained):
        conversations = [ASK, [user("Describe this.")], [user(picture("blue"), "And?")]]
        full = untrained.chat(conversations, max_new_tokens=20)
        stop = full[1][4:7]
        expected = [text.partition(stop)[0] for text in full]
        assert untrained.chat(conversations, max_new_tokens=20, stop=stop) == expected
        assert expected[1] != full[1]

    def test_nothing_is_computed_after_the_last_has_ended(self, untrained, monkeypatch):
        steps, step = [], DecodeSession.step
        monkeypatch.setattr(DecodeSession, "step", lambda self: (steps.append(1), step(self))[1])
        full = untrained.chat(ASK, max_new_tokens=20)
        assert len(steps) == 19
        steps.clear()
        untrained.chat(ASK, max_new_tokens=20, stop=full[0])
        assert len(steps) < 3

    @pytest.mark.parametrize("stop", ["", ["a", ""], 5, [5], {"a": 1}, [None]])
    def test_what_is_refused(self, untrained, stop):
        for name in ("stop", "stop_strings"):
            with pytest.raises(InputError, match=f"^{name}: expected a string that is not empty"):
                untrained.chat(ASK, stream=True, **{name: stop})

    @staticmethod
    def pieces(untrained, text: str, stops, cut) -> list[str]:
        """What is passed on of `text`, which comes in pieces as `cut` says."""
        answer = Answer(untrained.tokenizer, stops)
        given = iter(cut(text))
        answer._decoder.push = lambda token: next(given)
        return [*(answer.push(0) for _ in cut(text)), answer.finish()]

    @pytest.mark.parametrize(
        ("text", "stops", "expected"),
        [
            ("one two three", ["two"], "one "),
            ("aaab", ["aab"], "a"),
            ("abcabd.", ["abd"], "abc"),
            ("abcd", ["abcd", "bc"], "a"),  # what is complete first counts
            ("abcd", ["bcd", "abcd"], ""),
            ("ab", ["abc"], "ab"),
            ("xaby", ["abc", "b", "xx"], "xa"),
            ("no stop", ["stop!", "nothing"], "no stop"),
        ],
    )
    def test_however_the_text_is_cut(self, untrained, text, stops, expected):
        for size in range(1, len(text) + 1):
            pieces = self.pieces(untrained, text, stops, lambda s, n=size: [s[i : i + n] for i in range(0, len(s), n)])
            assert "".join(pieces) == expected
            for n in range(len(pieces)):
                assert expected.startswith("".join(pieces[:n])), "a part of a stop string was passed on"

    def test_text_is_held_back_no_longer_than_needed(self, untrained):
        assert self.pieces(untrained, "<a<b<|", ["<|end|>"], list) == ["", "<a", "", "<b", "", "", "<|"]


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
