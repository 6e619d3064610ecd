from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import tokenizers
from flashjanus.errors import CheckpointError, ConfigError, InputError
from flashjanus.inputs.tokenizer import BOS, EOS, StreamDecoder, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "golden"
TAGS = [
    "<image_placeholder>",
    "<｜begin▁of▁generation｜>",
    "<image_beg>",
    "<image_end>",
    "<｜begin▁of▁sentence｜>",
    EOS,
]


def golden_tokenizer() -> Tokenizer:
    return Tokenizer.from_files(
        GOLDEN / "tokenizer.json", GOLDEN / "tokenizer_config.json", GOLDEN / "processor_config.json"
    )


TOKENIZER = golden_tokenizer()


def variant(tmp_path: Path, change=None, config=None, processor=None, special=None) -> Tokenizer:
    """The golden tokenizer with its JSON changed in place and other config files."""
    raw = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    if change:
        change(raw)
    paths = []
    for name, content in (("tokenizer", raw), ("config", config), ("processor", processor), ("special", special)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        paths.append(None if content is None else path)
    return Tokenizer.from_files(*paths)


def test_missing_tags_get_the_official_ids():
    t = TOKENIZER
    assert (t.bos_id, t.eos_id, t.pad_id, t.image_gen_id) == (0, 1, 2, 3)
    assert (t.image_id, t.image_start_id, t.image_end_id) == (378, 379, 380)
    assert (t.num_image_tokens, t.sft_format, t.vocab_size) == (576, "deepseek_old", 381)


def test_tags_are_added_image_generation_start_end(tmp_path):
    def drop_generation_tag(raw):
        raw["added_tokens"] = raw["added_tokens"][:3]
        raw["model"]["vocab"]["unrelated"] = raw["model"]["vocab"].pop("<｜begin▁of▁generation｜>")

    t = variant(tmp_path, drop_generation_tag)
    assert [t.image_id, t.image_gen_id, t.image_start_id, t.image_end_id] == [378, 379, 380, 381]


def test_defaults_of_the_official_code_without_config_files():
    t = Tokenizer.from_files(GOLDEN / "tokenizer.json")
    assert t.sft_format == "deepseek"
    assert t.decode([t.image_start_id, t.image_end_id], skip_special_tokens=False) == "<begin_of_image><end_of_image>"
    assert t.adds_bos


def test_pad_falls_back_to_eos(tmp_path):
    def drop_pad(raw):
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] != 2]
        raw["model"]["vocab"]["unrelated"] = raw["model"]["vocab"].pop("<｜▁pad▁｜>")

    assert variant(tmp_path, drop_pad).pad_id == 1


def test_tokens_declared_in_the_config_files_come_before_the_tags(tmp_path):
    config = {"added_tokens_decoder": {"378": {"content": "<|User|>", "special": False}, "0": {"content": BOS}}}
    t = variant(tmp_path, config=config, special={"additional_special_tokens": ["<|Assistant|>"]})
    assert [t.control_id("<|User|>"), t.control_id("<|Assistant|>"), t.image_id] == [378, 379, 380]
    assert 378 not in t.encode_text("<|User|>")


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    def limit(raw):
        raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}

    assert len(variant(tmp_path, limit).encode_text("a long text of many tokens")) > 4


@pytest.mark.parametrize("tag", [*TAGS, "<｜▁pad▁｜>"])
def test_tags_in_text_stay_text(tag):
    ids = TOKENIZER.encode_text(f"draw {tag} please")
    assert not {0, 1, 2, 3, 378, 379, 380} & set(ids)
    assert TOKENIZER.decode(ids) == f"draw {tag} please"


def test_a_tag_listed_as_ordinary_token_stays_text_too(tmp_path):
    def list_tag(raw):
        tag = {"content": TAGS[0], "special": False, "normalized": False}
        raw["added_tokens"].append({**tag, "id": 378, "single_word": False, "lstrip": False, "rstrip": False})

    t = variant(tmp_path, list_tag)
    assert t.image_id == 378
    assert 378 not in t.encode_text(TAGS[0])


def test_a_vocabulary_that_matches_whole_words_refuses_tags(tmp_path):
    def whole_words(raw):
        raw["model"]["ignore_merges"] = True
        raw["model"]["vocab"]["<image_end>"] = 378
        raw["pre_tokenizer"]["use_regex"] = False

    with pytest.raises(InputError, match="<image_end>"):
        variant(tmp_path, whole_words, processor={"image_end_tag": "<image_end>"}).encode_text("<image_end>")


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(max_size=8)), max_size=6).map("".join))
def test_any_text_with_tags_is_text(text):
    ids = TOKENIZER.encode_text(text)
    assert TOKENIZER.decode(ids) == text
    assert not {0, 1, 2, 3, 378, 379, 380} & set(ids)


@settings(deadline=None)
@given(st.text(max_size=40).filter(lambda text: "｜" not in text))
def test_text_without_tags_is_encoded_as_by_the_library(text):
    library = tokenizers.Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
    assert TOKENIZER.encode_text(text) == library.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 385), max_size=30), st.booleans())
def test_streamed_pieces_join_to_the_whole(ids, skip):
    stream = StreamDecoder(TOKENIZER, skip_special_tokens=skip)
    pieces = [stream.push(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_streamed_text_has_no_broken_characters(text):
    stream = StreamDecoder(TOKENIZER)
    shown = ""
    for i in TOKENIZER.encode_text(text):
        shown += stream.push(i)
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_an_unfinished_character_is_held_back_until_the_end():
    first, *_ = TOKENIZER.encode_text("😀")
    stream = StreamDecoder(TOKENIZER)
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


def test_special_tokens_are_skipped_on_demand():
    ids = [0, *TOKENIZER.encode_text("blue"), 378, 1]
    assert TOKENIZER.decode(ids) == "blue"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == f"{BOS}blue{TAGS[0]}{EOS}"


@pytest.mark.parametrize("code", [0xD800, 0xDC80, 0xDFFF])
def test_lone_surrogates_are_refused(code):
    with pytest.raises(InputError, match=rf"surrogate U\+{code:X} at character 1"):
        TOKENIZER.encode_text(f"a{chr(code)}b")


def test_text_must_be_str():
    with pytest.raises(InputError, match="bytes"):
        TOKENIZER.encode_text(b"red")


@pytest.mark.parametrize("text", ["a" * 100_000, "red " * 25_000, " " * 100_000, "图" * 100_000])
def test_long_texts_take_linear_time(text):
    start = time.perf_counter()
    assert len(TOKENIZER.encode_text(text)) >= 20_000
    assert time.perf_counter() - start < 5


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent"):
        Tokenizer.from_files(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="absent"):
        Tokenizer.from_files(GOLDEN / "tokenizer.json", tmp_path / "absent.json")
    with pytest.raises(CheckpointError):
        Tokenizer.from_files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"5"])
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="broken"):
        Tokenizer.from_files(path)
    with pytest.raises(ConfigError, match="broken"):
        Tokenizer.from_files(GOLDEN / "tokenizer.json", path)
    with pytest.raises(ConfigError, match="broken"):
        Tokenizer.from_files(GOLDEN / "tokenizer.json", None, path)


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "BPE"}}', '{"model": {"type": "BPE", "vocab": {}}}'])
def test_json_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="broken"):
        Tokenizer.from_files(path)


@pytest.mark.parametrize(
    ("config", "processor", "special", "message"),
    [
        (None, {"sft_format": "llama"}, None, "deepseek_old"),
        (None, {"num_image_tokens": 0}, None, "num_image_tokens"),
        (None, {"num_image_tokens": True}, None, "num_image_tokens"),
        (None, {"image_tag": None}, None, "tags"),
        (None, {"image_tag": "<a>", "image_end_tag": "<a>"}, None, "different"),
        (None, {"add_special_token": True}, None, "add_special_token"),
        ({"bos_token": 5}, None, None, "token"),
        ({"add_eos_token": True}, None, None, "add_eos_token"),
        ({"added_tokens_decoder": {"x": "y"}}, None, None, "added_tokens_decoder"),
        ({"added_tokens_decoder": ["y"]}, None, None, "added_tokens_decoder"),
        (None, None, {"additional_special_tokens": "<a>"}, "additional_special_tokens"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, config, processor, special, message):
    with pytest.raises(ConfigError, match=message):
        variant(tmp_path, config=config, processor=processor, special=special)


def test_a_vocabulary_without_bos_is_refused(tmp_path):
    def rename(raw):
        raw["added_tokens"] = raw["added_tokens"][1:]
        raw["model"]["vocab"]["unrelated"] = raw["model"]["vocab"].pop(BOS)
        raw["post_processor"] = None

    with pytest.raises(ConfigError, match="bos_token"):
        variant(tmp_path, rename)


def test_another_decoder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ByteLevel"):
        variant(tmp_path, lambda raw: raw.update(decoder={"type": "Fuse"}))
