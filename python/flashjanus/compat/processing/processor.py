"""The official processor, which turns conversations and images into padded ids, masks, and pixels.

Source: `VLChatProcessor` of deepseek-ai/Janus (janusflow).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from flashjanus.compat.processing.conversation import Conversation, prompt_of
from flashjanus.compat.processing.folders import hub_options, text_files
from flashjanus.compat.processing.images import VLMImageProcessor
from flashjanus.compat.processing.outputs import BatchedVLChatProcessorOutput, VLChatProcessorOutput
from flashjanus.compat.processing.tokenizer import ChatTokenizer
from flashjanus.disk.reading import read_json
from flashjanus.disk.writing import write_text
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import ConfigError, InputError
from flashjanus.inputs.images import ImageSource
from flashjanus.inputs.prompts import DEFAULT_SYSTEM_PROMPT
from flashjanus.inputs.tokenizer import PAD, ProcessorConfig

Messages = Sequence[Mapping[str, Any]]


class VLChatProcessor:
    """Turns conversations and images into the inputs of `MultiModalityCausalLM`.

    system_prompt, sft_format, num_image_tokens, and the tags may be assigned. The ids of the tags are `image_id`,
    `image_start_id`, `image_end_id`, and `image_gen_id`.
    """

    attributes = ("image_processor", "tokenizer")
    system_prompt = DEFAULT_SYSTEM_PROMPT

    def __init__(
        self,
        image_processor: VLMImageProcessor,
        tokenizer: Any,
        image_tag: str = ProcessorConfig.image_tag,
        image_start_tag: str = ProcessorConfig.image_start_tag,
        image_end_tag: str = ProcessorConfig.image_end_tag,
        image_gen_tag: str = ProcessorConfig.image_gen_tag,
        num_image_tokens: int = ProcessorConfig.num_image_tokens,
        add_special_token: bool = False,
        sft_format: str = ProcessorConfig.sft_format,
        mask_prompt: bool = True,
        ignore_id: int = -100,
    ) -> None:
        """tokenizer: a `ChatTokenizer`, or one of transformers. Tags that it lacks are added to it in the order image,
        generation, start, end, which determines their ids. Raises `ConfigError`."""
        given = dict(
            image_tag=image_tag,
            image_gen_tag=image_gen_tag,
            image_start_tag=image_start_tag,
            image_end_tag=image_end_tag,
            num_image_tokens=num_image_tokens,
            sft_format=sft_format,
            add_special_token=add_special_token,
        )
        config = ProcessorConfig.from_dict(given, "VLChatProcessor")
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_tag, self.image_gen_tag = config.image_tag, config.image_gen_tag
        self.image_start_tag, self.image_end_tag = config.image_start_tag, config.image_end_tag
        self.num_image_tokens, self.sft_format = config.num_image_tokens, config.sft_format
        self.add_special_token, self.mask_prompt, self.ignore_id = False, mask_prompt, ignore_id
        for tag in (image_tag, image_gen_tag, image_start_tag, image_end_tag):
            if tokenizer.vocab.get(tag) is None:
                tokenizer.add_special_tokens({"additional_special_tokens": [tag]})
        tokenizer.pad_token_id = tokenizer.vocab.get(PAD)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load the processor of a folder in the official layout, a hub id, or the built-in model "shapes".

        options: fields of processor_config.json, which override the file; revision, cache_dir, local_files_only, and
        token for the hub. trust_remote_code and use_fast are accepted without effect: no code of a repository runs.
        Raises `CheckpointError`, `ConfigError`, and `InputError` for another option.
        """
        files = text_files(pretrained_model_name_or_path, hub_options(options))
        config = {} if (path := files.get("processor_config.json")) is None else read_json(path, ConfigError)
        config = {**config, **{name: options.pop(name) for name in FIELDS if name in options}}
        if options:
            raise InputError(f"{cls.__name__}: unknown options {', '.join(options)}; known: {', '.join(FIELDS)}")
        for needed in ("tokenizer.json", "preprocessor_config.json"):
            if needed not in files:
                raise ConfigError(f"{pretrained_model_name_or_path}: expected {needed} in the checkpoint, got none")
        ProcessorConfig.from_dict(config, str(path or "the default processor settings"))
        rest = (files.get("tokenizer_config.json"), files.get("special_tokens_map.json"))
        tokenizer = ChatTokenizer.from_files(files["tokenizer.json"], *rest)
        images = VLMImageProcessor.from_file(files["preprocessor_config.json"])
        return cls(images, tokenizer, **{name: config[name] for name in FIELDS if name in config})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write processor_config.json, preprocessor_config.json, and the tokenizer's files. Raises `OutputError`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {name: getattr(self, name) for name in FIELDS} | {"processor_class": "VLChatProcessor"}
        write_text(folder / "processor_config.json", json.dumps(config, indent=1, ensure_ascii=False))
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def new_chat_template(self) -> Conversation:
        """An empty conversation with this processor's template and system prompt."""
        return Conversation(self.sft_format, self.system_prompt)

    def apply_sft_template_for_multi_turn_prompts(
        self, conversations: Messages, sft_format: str = "deepseek", system_prompt: str = ""
    ) -> str:
        """The prompt of messages {"role": "User" | "Assistant", "content": str}; see `prompt_of`. The default
        sft_format is the official code's, not this processor's: pass `processor.sft_format`."""
        return prompt_of(conversations, sft_format, system_prompt)

    @property
    def pad_id(self) -> int:
        """The id of the pad token, or of the end-of-sentence token if there is none."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def image_id(self) -> int:
        return self._id(self.image_tag)

    @property
    def image_start_id(self) -> int:
        return self._id(self.image_start_tag)

    @property
    def image_end_id(self) -> int:
        return self._id(self.image_end_tag)

    @property
    def image_gen_id(self) -> int:
        return self._id(self.image_gen_tag)

    @property
    def image_token(self) -> str:
        return self.image_tag

    @property
    def image_start_token(self) -> str:
        return self.image_start_tag

    @property
    def image_end_token(self) -> str:
        return self.image_end_tag

    def _id(self, tag: str) -> int:
        found = self.tokenizer.vocab.get(tag)
        if found is None:
            raise InputError(f"{tag!r} is not in the tokenizer's vocabulary; add it with tokenizer.add_special_tokens")
        return int(found)

    @entry
    def add_image_token(
        self, image_indices: Sequence[int] | torch.Tensor, input_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the image tags at these positions of ids (T,) by a start tag, `num_image_tokens` image tags, and an
        end tag. Returns the new ids, and for each image the number of embeddings that take their place:
        `num_image_tokens` + 1, because the start tag counts."""
        block = [self.image_start_id, *[self.image_id] * self.num_image_tokens, self.image_end_id]
        places = torch.as_tensor(image_indices, device="cpu").flatten().tolist()
        parts, start = [], 0
        for place in places:
            parts += [input_ids[start:place], torch.tensor(block, dtype=torch.long)]
            start = place + 1
        features = torch.full((len(places),), self.num_image_tokens + 1, dtype=torch.int32)
        return torch.cat([*parts, input_ids[start:]]), features

    @entry
    def process_one(
        self,
        prompt: str | None = None,
        conversations: Messages | None = None,
        images: Sequence[ImageSource] | None = None,
        **ignored: Any,
    ) -> VLChatProcessorOutput:
        """Process one conversation, or one formatted prompt, and the images of its `<image_placeholder>`s in order.

        Images are those from `load_pil_images`, or anything that it takes. Raises `InputError`.
        """
        if ignored:
            warnings.warn(f"VLChatProcessor: ignored, as in the official code: {', '.join(ignored)}", stacklevel=3)
        if (prompt is None) == (conversations is None):
            given = "neither" if prompt is None else "both"
            raise InputError(f"prompt, conversations: expected one of them, got {given}")
        text = prompt if prompt is not None else prompt_of(conversations or (), self.sft_format, self.system_prompt)
        ids = torch.tensor(self.tokenizer.encode(text), dtype=torch.long)
        places = (ids == self.image_id).nonzero()
        ids, features = self.add_image_token(places, ids)
        pixels = self.image_processor(list(images or ()), return_tensors="pt").pixel_values
        if len(features) != len(pixels):
            message = (
                f"images: expected one for each {self.image_tag} of the prompt ({len(features)}), got {len(pixels)}"
            )
            if len(features):
                raise InputError(message)
            warnings.warn(f"{message}; the model sees none of them", stacklevel=3)
        return VLChatProcessorOutput(text, ids, pixels, features)

    def __call__(
        self,
        *,
        prompt: str | None = None,
        conversations: Messages | None = None,
        images: Sequence[ImageSource] | None = None,
        force_batchify: bool = True,
        **ignored: Any,
    ) -> VLChatProcessorOutput | BatchedVLChatProcessorOutput:
        """Call `process_one`, and with force_batchify make a batch of one from its result."""
        prepared = self.process_one(prompt, conversations, images, **ignored)
        return self.batchify([prepared]) if force_batchify else prepared

    @entry
    def batchify(self, prepare_list: Sequence[VLChatProcessorOutput]) -> BatchedVLChatProcessorOutput:
        """Make a batch from results of `process_one`. Ids are padded on the left with `pad_id`, and images with
        zeros."""
        if not prepare_list:
            raise InputError("batchify: expected at least one output of process_one, got none")
        rows, longest = len(prepare_list), max(map(len, prepare_list))
        most = max(1, *(len(one.num_und_image_tokens) for one in prepare_list))
        ids = torch.full((rows, longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros((rows, longest), dtype=torch.long)
        places = torch.zeros((rows, longest), dtype=torch.bool)
        pixels = torch.zeros((rows, most, *self.image_processor.default_shape), dtype=torch.float32)
        features = torch.zeros((rows, most, self.num_image_tokens + 1), dtype=torch.bool)
        for row, one in enumerate(prepare_list):
            own = slice(longest - len(one), None)
            ids[row, own], mask[row, own] = one.input_ids, 1
            places[row, own] = (one.input_ids == self.image_id) | (one.input_ids == self.image_start_id)
            for image, count in enumerate(one.num_und_image_tokens.tolist()):
                pixels[row, image] = one.pixel_values[image]
                features[row, image, :count] = True
        texts = [one.sft_format for one in prepare_list]
        return BatchedVLChatProcessorOutput(texts, ids, pixels, mask, places, features)


FIELDS = (
    "image_tag",
    "image_start_tag",
    "image_end_tag",
    "image_gen_tag",
    "num_image_tokens",
    "add_special_token",
    "sft_format",
    "mask_prompt",
    "ignore_id",
)
"""The fields of processor_config.json."""
