"""JanusFlow as a model of VLMEvalKit, on FlashJanus. The prompts are those that it gives to Janus, so that scores of
both compare."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flashjanus
import pandas as pd
from flashjanus.errors import InputError
from flashjanus.sampling.options import TokenOptions
from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

STEP_BY_STEP = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get "
    "the right answer."
)
"""The system prompt of MM-Vet's questions; others have none."""


class JanusFlow(BaseModel):
    """model_path: a folder, a hub id, or "shapes". device, dtype, quantization: as in JanusFlow.from_pretrained. Other
    options are those of JanusFlow.chat; without them answers are greedy and have at most 2048 tokens."""

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        model_path: str = "deepseek-ai/JanusFlow-1.3B",
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = {"max_new_tokens": 2048, **options}
        TokenOptions(**self.options).checked()  # before minutes of loading, not after
        self.model = flashjanus.JanusFlow.from_pretrained(
            model_path, device=device, dtype=dtype, quantization=quantization
        )

    def use_custom_prompt(self, dataset: str) -> bool:
        return DATASET_TYPE(dataset) in ("Y/N", "MCQ") or dataset == "MMVet"

    def build_prompt(self, line: Mapping[str, Any], dataset: str) -> list[dict[str, str]]:
        """A row of a data set whose prompts are ours: its images, then the question."""
        kind, question = DATASET_TYPE(dataset), line["question"]
        if kind == "Y/N":
            if dataset == "POPE":
                question = question.replace(" Please answer yes or no.", "")
            text = f"{question}\nAnswer the question using a single word or phrase."
        elif kind == "MCQ":
            text = _multiple_choice(line, question)
        else:
            text = question
        images = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [*images, {"type": "text", "value": text}]

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to parts in their order; any number of images may stand among them."""
        return self._answer([{"role": "user", "content": _parts(message)}], dataset)

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a conversation of several turns."""
        turns = [{"role": turn["role"], "content": _parts(turn["content"])} for turn in message]
        return self._answer(turns, dataset)

    def _answer(self, turns: list[dict[str, Any]], dataset: str | None) -> str:
        system = STEP_BY_STEP if dataset is not None and "MMVet" in dataset else ""
        try:
            answer = self.model.chat([{"role": "system", "content": system}, *turns], **self.options)
        except InputError as error:  # a question that is too long, say; SKIP_ERR=1 skips RuntimeErrors alone
            raise RuntimeError(str(error)) from error
        assert isinstance(answer, str)
        return answer


def _parts(message: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{"type": part["type"], part["type"]: part["value"]} for part in message]


def _multiple_choice(line: Mapping[str, Any], question: str) -> str:
    """Hint, question and lettered choices; the columns of those that a row has not are absent or NaN."""
    hint = f"Hint: {line['hint']}\n" if _has(line, "hint") else ""
    choices = "".join(f"{letter}. {line[letter]}\n" for letter in string.ascii_uppercase if _has(line, letter))
    if choices:
        return f"{hint}{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
    return f"{hint}{question}\nAnswer the question directly."


def _has(line: Mapping[str, Any], column: str) -> bool:
    return column in line and not pd.isna(line[column])


MODELS = {
    "JanusFlow-1.3B": partial(JanusFlow, model_path="deepseek-ai/JanusFlow-1.3B"),
    "JanusFlow-1.3B-int8": partial(JanusFlow, model_path="deepseek-ai/JanusFlow-1.3B", quantization="int8"),
    "JanusFlow-shapes": partial(JanusFlow, model_path="shapes"),
}
"""For VLMEvalKit's `supported_VLM`."""
