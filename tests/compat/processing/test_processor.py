"""The processor gives what the official one gave, as recorded, and says what it cannot take."""

from __future__ import annotations

import base64
import io
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from flashjanus.checkpoint.files import TEXT_FILES
from flashjanus.compat.janusflow import VLChatProcessor, VLMImageProcessor, load_pil_images
from flashjanus.errors import CheckpointError, ConfigError, InputError
from PIL import Image
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden"
PREPROCESSING = load_file(GOLDEN / "preprocess.safetensors")
CASES = json.loads((GOLDEN / "chat.json").read_text(encoding="utf-8"))
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
ASK = [
    {"role": "User", "content": "<image_placeholder>\nWhat is it?", "images": [PICTURE]},
    {"role": "Assistant", "content": ""},
]
TALK = [{"role": "User", "content": "Hello"}, {"role": "Assistant", "content": ""}]


@pytest.fixture(scope="module")
def processor() -> VLChatProcessor:
    return VLChatProcessor.from_pretrained(GOLDEN)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_conversations_become_the_official_ids(processor, case):
    conversation = case["conversation"]
    count = sum(message["content"].count("<image_placeholder>") for message in conversation)
    inputs = processor(conversations=conversation, images=[PICTURE] * count, force_batchify=True)
    assert inputs.sft_format == [case["sft_format"]]
    assert inputs.input_ids.tolist() == [case["input_ids"]]
    assert inputs.attention_mask.tolist() == [[1] * len(case["input_ids"])]
    assert inputs.images_seq_mask.sum() == inputs.images_emb_mask.sum() == 577 * count
    assert inputs.images_emb_mask.shape == (1, max(1, count), 577)
    assert inputs.pixel_values.shape == (1, max(1, count), 3, 384, 384)
    by_prompt = processor(prompt=case["sft_format"], images=[PICTURE] * count)
    assert torch.equal(by_prompt.input_ids, inputs.input_ids)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_prompts_of_images_become_the_official_ids(processor, case):
    text = processor.apply_sft_template_for_multi_turn_prompts(
        conversations=case["conversation"], sft_format=processor.sft_format, system_prompt=""
    )
    text = text + processor.image_gen_tag
    assert text == case["generation_prompt"]
    assert processor.tokenizer.encode(text) == case["generation_ids"]


@pytest.mark.parametrize("index", range(5))
def test_images_become_the_official_pixels(processor, index):
    content = PREPROCESSING[f"img{index}.png"].numpy().tobytes()
    images = load_pil_images([{"role": "User", "content": "", "images": [data_url(content)]}])
    expected = PREPROCESSING[f"img{index}.pixel_values_u8"].float() / 255
    pixels = processor.image_processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels[0], (expected - 0.5) / 0.5, rtol=0, atol=2e-7)
    one = processor.process_one(conversations=ASK, images=images)
    assert torch.equal(one.pixel_values, pixels)
    assert one.num_und_image_tokens.tolist() == [577]


def test_a_batch_is_padded_on_the_left(processor):
    two = [
        {**ASK[0], "content": "<image_placeholder><image_placeholder> Which is brighter?"},
        ASK[1],
    ]
    ones = [
        processor.process_one(conversations=conversation, images=images)
        for conversation, images in ((ASK, [PICTURE]), (TALK, None), (two, [PICTURE, PICTURE.rotate(90)]))
    ]
    batch = processor.batchify(ones)
    rows, longest = 3, max(map(len, ones))
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.images_seq_mask.shape == (rows, longest)
    assert batch.pixel_values.shape == (rows, 2, 3, 384, 384)
    assert batch.images_emb_mask.sum((1, 2)).tolist() == [577, 0, 2 * 577]
    for row, one in enumerate(ones):
        padding = longest - len(one)
        assert batch.input_ids[row].tolist() == [processor.pad_id] * padding + one.input_ids.tolist()
        assert batch.attention_mask[row].tolist() == [0] * padding + [1] * len(one)
        seen = (one.input_ids == processor.image_id) | (one.input_ids == processor.image_start_id)
        assert batch.images_seq_mask[row].tolist() == [False] * padding + seen.tolist()
        count = len(one.pixel_values)
        assert torch.equal(batch.pixel_values[row, :count], one.pixel_values)
        assert not batch.pixel_values[row, count:].any()


def test_outputs_work_as_attributes_items_and_keywords(processor):
    inputs = processor(conversations=ASK, images=[PICTURE])
    assert inputs["sft_format"][0] == inputs.sft_format[0]
    assert set(inputs.keys()) == {
        "sft_format",
        "input_ids",
        "pixel_values",
        "attention_mask",
        "images_seq_mask",
        "images_emb_mask",
    }
    assert dict(**inputs)["input_ids"] is inputs.input_ids
    assert "pixel_values" in inputs
    inputs["extra"] = 1
    assert inputs.extra == 1
    assert inputs.to("cpu") is inputs
    assert inputs.pixel_values.dtype == torch.bfloat16, "the official default"
    assert inputs.to("cpu", dtype=torch.float16).pixel_values.dtype == torch.float16
    assert (inputs.input_ids.dtype, inputs.images_seq_mask.dtype) == (torch.int64, torch.bool)
    one = processor(conversations=ASK, images=[PICTURE], force_batchify=False)
    assert len(one) == len(one.input_ids) == inputs.input_ids.shape[1]


def test_names_and_ids(processor):
    assert (processor.image_tag, processor.image_gen_tag) == ("<image_placeholder>", "<｜begin▁of▁generation｜>")
    assert (processor.image_start_tag, processor.image_end_tag) == ("<image_beg>", "<image_end>")
    assert (processor.image_id, processor.image_start_id, processor.image_end_id) == (378, 379, 380)
    assert (processor.image_gen_id, processor.pad_id, processor.num_image_tokens) == (3, 2, 576)
    assert (processor.sft_format, processor.add_special_token, processor.ignore_id) == ("deepseek_old", False, -100)
    tokenizer = processor.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.vocab[processor.image_tag] == 378
    assert len(tokenizer) == len(tokenizer.vocab) == tokenizer.vocab_size + 3 == 381


def test_the_system_prompt_can_be_assigned(processor):
    own = VLChatProcessor.from_pretrained(GOLDEN)
    own.system_prompt = "Be brief."
    assert own(conversations=TALK).sft_format == ["Be brief.\n\nUser: Hello\n\nAssistant:"]
    own.system_prompt = ""
    assert own(conversations=TALK).sft_format == ["User: Hello\n\nAssistant:"]
    template = own.new_chat_template()
    template.append_message(template.roles[0], "Hi")
    template.append_message(template.roles[1], None)
    assert template.get_prompt() == "User: Hi\n\nAssistant:"
    assert processor(conversations=TALK).sft_format[0].startswith("You are a helpful language and vision assistant.")


def test_the_other_template_is_the_default_of_the_function(processor):
    messages = [
        {"role": "<|User|>", "content": " Hi "},
        {"role": "<|Assistant|>", "content": "Ho"},
        {"role": "<|User|>", "content": ""},
    ]
    text = processor.apply_sft_template_for_multi_turn_prompts(messages)
    assert text == "<|User|>: Hi\n\n<|Assistant|>: Ho<｜end▁of▁sentence｜><|User|>:"


def test_options_win_over_the_file_and_code_is_never_run():
    own = VLChatProcessor.from_pretrained(
        str(GOLDEN), sft_format="deepseek", num_image_tokens=4, trust_remote_code=True, local_files_only=True
    )
    assert (own.sft_format, own.num_image_tokens) == ("deepseek", 4)
    assert own(conversations=ASK, images=[PICTURE]).images_emb_mask.shape == (1, 1, 5)


def test_the_built_in_model_has_one_too():
    own = VLChatProcessor.from_pretrained("shapes")
    inputs = own(conversations=ASK, images=[PICTURE])
    assert inputs.pixel_values.shape == (1, 1, 3, 64, 64)
    assert inputs.images_emb_mask.shape == (1, 1, 17)


def test_a_saved_processor_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    again = VLChatProcessor.from_pretrained(tmp_path / "saved")
    expected, got = (its(conversations=ASK, images=[PICTURE]) for its in (processor, again))
    assert torch.equal(expected.input_ids, got.input_ids)
    assert torch.equal(expected.pixel_values, got.pixel_values)
    assert again.image_processor == processor.image_processor


def test_the_callers_default_device_and_dtype_do_not_count(processor):
    expected = processor(conversations=ASK, images=[PICTURE])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            got = processor(conversations=ASK, images=[PICTURE])
            ids = processor.tokenizer("Hello", return_tensors="pt").input_ids
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(got[name], expected[name]) for name in expected.keys() - {"sft_format"})
    assert ids.device.type == "cpu"


def test_sources_of_images(tmp_path):
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    sources = [str(path), path, path.as_uri(), data_url(path.read_bytes()), PICTURE, np.asarray(PICTURE)]
    images = load_pil_images([{"role": "User", "content": "", "images": sources}, {"role": "Assistant", "content": ""}])
    assert [np.array_equal(image, PICTURE) for image in images] == [True] * len(sources)
    assert {image.mode for image in images} == {"RGB"}


def test_colors_are_as_they_are_stored():
    """Neither laid on white nor turned, as the official code reads them."""
    clear = Image.new("RGBA", (4, 2), (10, 20, 30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(PICTURE, "JPEG", exif=exif)
    images = load_pil_images([{"images": [data_url(encoded(clear)), clear, data_url(turned, "jpeg")]}])
    assert [image.getpixel((0, 0)) for image in images[:2]] == [(10, 20, 30)] * 2
    assert images[2].size == PICTURE.size
    upright = VLMImageProcessor(384, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)([images[2]]).pixel_values
    assert bool((upright[0, :, 0] == upright[0, 0, 0, 0]).all()), "a strip of the background above"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["absent.png"], "absent.png"),
        (["https://host/picture.png"], "network"),
        (["data:image/png;base64,AAAA"], "not an image"),
        ("picture.png", "must be a list"),
        ([5], "int"),
    ],
)
def test_images_that_are_none_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        load_pil_images([{"role": "User", "content": "", "images": images}])


def test_the_number_of_images_must_be_that_of_their_tags(processor):
    with pytest.raises(InputError, match=r"one for each <image_placeholder> of the prompt \(1\), got 0"):
        processor(conversations=ASK)
    with pytest.raises(InputError, match="got 2"):
        processor(conversations=ASK, images=[PICTURE, PICTURE])
    with pytest.warns(UserWarning, match="the model sees none of them"):
        inputs = processor(conversations=TALK, images=[PICTURE])
    assert not inputs.images_emb_mask.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither"),
        ({"prompt": "a", "conversations": TALK}, "both"),
        ({"prompt": 5}, "int"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"conversations": TALK[0]}, "list of messages"),
        ({"conversations": [{"role": "User"}]}, r"conversations\[0\]"),
        ({"conversations": [{"role": "User", "content": [{"type": "text"}]}]}, "<image_placeholder>"),
    ],
)
def test_what_is_no_conversation_is_refused(processor, given, message):
    with pytest.raises(InputError, match=message):
        processor(**given)
    with pytest.raises(InputError, match="at least one"):
        processor.batchify([])


def test_an_option_that_the_official_code_ignores_is_named(processor):
    with pytest.warns(UserWarning, match="system_prompt"):
        processor(conversations=TALK, system_prompt="Be brief.")


def test_an_unknown_template_is_refused(processor):
    with pytest.raises(InputError, match="deepseek_old"):
        processor.apply_sft_template_for_multi_turn_prompts(TALK, sft_format="llama")


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("no/such/folder", {}, CheckpointError, "no such folder"),
        ("", {}, CheckpointError, "folder or a hub id"),
        (GOLDEN, {"image_tags": "<x>"}, InputError, "image_tags"),
        (GOLDEN, {"sft_format": "llama"}, ConfigError, "deepseek_old"),
        (GOLDEN, {"add_special_token": True}, ConfigError, "add_special_token"),
    ],
)
def test_what_cannot_be_loaded_is_refused(source, options, error, message):
    with pytest.raises(error, match=message):
        VLChatProcessor.from_pretrained(source, **options)


class Hub(ModuleType):
    """huggingface_hub with one repository; notes what was asked for."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub")
        self.calls: list[dict] = []

    def snapshot_download(self, repo_id: str, **options) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        return str(GOLDEN)


def test_of_a_repository_the_small_files_alone_are_fetched(monkeypatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    own = VLChatProcessor.from_pretrained(
        "someone/tiny", revision="v1", local_files_only=True, cache_dir="/cache", token=None, trust_remote_code=True
    )
    assert own.image_id == 378
    [call] = hub.calls
    assert sorted(call.pop("allow_patterns")) == sorted(TEXT_FILES)
    assert call == dict(repo_id="someone/tiny", revision="v1", local_files_only=True, cache_dir="/cache")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        VLChatProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        VLChatProcessor.from_pretrained(tmp_path)


def test_nothing_is_warned_about_in_ordinary_use(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(conversations=ASK, images=[PICTURE])
        processor(conversations=TALK, images=[])
