"""The tokenizer under transformers' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flashjanus.compat.janusflow import VLChatProcessor
from flashjanus.compat.processing.tokenizer import ChatTokenizer
from flashjanus.errors import ConfigError, InputError

GOLDEN = Path(__file__).parents[2] / "golden"
EOS = "<｜end▁of▁sentence｜>"


@pytest.fixture
def tokenizer() -> ChatTokenizer:
    return VLChatProcessor.from_pretrained(GOLDEN).tokenizer


def test_texts_and_ids(tokenizer):
    ids = tokenizer.encode("Hello<image_placeholder>" + EOS)
    assert ids[0] == 0
    assert ids[-2:] == [378, 1]
    assert tokenizer.encode("Hello", add_special_tokens=False) == ids[1:-2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello"
    assert tokenizer.decode(ids) == f"<｜begin▁of▁sentence｜>Hello<image_placeholder>{EOS}"
    for row in (torch.tensor(ids), np.array(ids), tuple(ids), iter(ids)):
        assert tokenizer.decode(row, skip_special_tokens=True) == "Hello"
    assert tokenizer.decode(1) == tokenizer.decode(torch.tensor(1)) == EOS
    assert tokenizer.batch_decode([ids, [0]], skip_special_tokens=True) == ["Hello", ""]
    assert tokenizer.encode("Hello", return_tensors="pt").tolist() == [[0, *ids[1:-2]]]
    assert tokenizer.tokenize("Hello") == tokenizer.convert_ids_to_tokens(ids[1:-2])
    assert tokenizer.convert_tokens_to_ids([EOS, "absent"]) == [1, None]


def test_several_texts(tokenizer):
    short, long = tokenizer.encode("a"), tokenizer.encode("a red circle")
    lists = tokenizer(["a", "a red circle"])
    assert lists["input_ids"] == [short, long]
    padding = len(long) - len(short)
    padded = tokenizer(["a", "a red circle"], padding=True, return_tensors="pt")
    assert padded.to("cpu").input_ids.tolist() == [[2] * padding + short, long]
    assert padded.attention_mask.tolist() == [[0] * padding + [1] * len(short), [1] * len(long)]
    tokenizer.padding_side = "right"
    assert tokenizer(["a", "a red circle"], padding="longest").input_ids == [short + [2] * padding, long]
    assert tokenizer("a").input_ids == short
    with pytest.raises(InputError, match="padding=True"):
        tokenizer(["a", "a red circle"], return_tensors="pt")


def test_special_tokens_can_be_assigned_and_added(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 1
    tokenizer.pad_token_id = None
    assert tokenizer.pad_token is None
    with pytest.raises(InputError, match="pad token"):
        tokenizer(["a"], padding=True)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", EOS], "pad_token": "<p>"}) == 2
    assert (tokenizer.vocab["<x>"], tokenizer.pad_token_id, len(tokenizer)) == (381, 382, 383)
    assert tokenizer.encode("<x>") == [0, 381]
    assert {0, 1, 381} <= set(tokenizer.all_special_ids)


def test_a_processor_without_pad_token_pads_with_the_end(tmp_path):
    raw = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] != 2]
    raw["model"]["vocab"]["unrelated"] = raw["model"]["vocab"].pop("<｜▁pad▁｜>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    processor = VLChatProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.pad_token_id is None
    assert processor.pad_id == 1


def test_clean_up_is_as_the_file_or_the_call_says(tokenizer):
    ids = tokenizer.encode("it 's , here", add_special_tokens=False)
    assert tokenizer.decode(ids) == "it 's , here"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "it's, here"


@pytest.mark.parametrize("text", [5, None, b"red", "a\ud800"])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(InputError):
        tokenizer.encode(text)


def test_other_misuse_is_refused(tokenizer):
    with pytest.raises(InputError, match="batch_decode"):
        tokenizer.decode([[1, 2]])
    with pytest.raises(InputError, match="'pt'"):
        tokenizer.encode("a", return_tensors="tf")
    with pytest.raises(InputError, match="longest"):
        tokenizer(["a"], padding="max_length")


@pytest.mark.parametrize(
    ("config", "message"), [({"add_eos_token": True}, "add_eos_token"), ({"bos_token": "<absent>"}, None)]
)
def test_impossible_settings_are_refused(tmp_path, config, message):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(config))
    if message is None:  # declared there, it is added
        assert ChatTokenizer.from_files(GOLDEN / "tokenizer.json", path).bos_token_id == 378
        return
    with pytest.raises(ConfigError, match=message):
        ChatTokenizer.from_files(GOLDEN / "tokenizer.json", path)
