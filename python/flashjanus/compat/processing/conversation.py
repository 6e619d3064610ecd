"""Chat templates, which turn messages into the text format that the model was trained on.

Source: `conversation.py` of deepseek-ai/Janus, the templates of its JanusFlow models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashjanus.errors import InputError
from flashjanus.inputs.tokenizer import TEMPLATES


class Conversation:
    """A template, a system message, and the messages so far, each a (role, text or None)."""

    def __init__(self, sft_format: str, system_message: str = "") -> None:
        if sft_format not in TEMPLATES:
            raise InputError(f"sft_format {sft_format!r} is not known; expected one of: {', '.join(TEMPLATES)}")
        self.name, self.template = sft_format, TEMPLATES[sft_format]
        self.system_message = system_message
        self.messages: list[tuple[str, str | None]] = []

    @property
    def roles(self) -> tuple[str, str]:
        """The template's names for the user and the assistant."""
        return self.template.user, self.template.assistant

    def set_system_message(self, system_message: str) -> None:
        self.system_message = system_message

    def append_message(self, role: str, message: str | None) -> None:
        """Append a message. None or "" stands for the answer that the model is to write."""
        self.messages.append((role, message))

    def get_prompt(self) -> str:
        """`{system}\\n\\n{role}: {message}...`: messages 0, 2, ... end with the separator, and messages 1, 3, ... with
        the end token. An empty message is `{role}:`. Roles are written as given."""
        ends = (self.template.separator, self.template.end)
        text = self.system_message + self.template.separator if self.system_message else ""
        for index, (role, message) in enumerate(self.messages):
            text += f"{role}: {message}{ends[index % 2]}" if message else f"{role}:"
        return text


def prompt_of(conversations: Sequence[Mapping[str, Any]], sft_format: str, system_prompt: str) -> str:
    """The prompt of messages {"role": str, "content": str}. White space is removed around each text and around the
    whole.

    Raises `InputError` for messages of another form.
    """
    if isinstance(conversations, str | Mapping) or not isinstance(conversations, Sequence):
        raise InputError(f"conversations: expected a list of messages, got {type(conversations).__name__}")
    conversation = Conversation(sft_format, system_prompt)
    for index, message in enumerate(conversations):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"conversations[{index}]: expected {{'role': ..., 'content': ...}}, got {message!r:.80}")
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(
                f"conversations[{index}]: role and content must be str, got {type(role).__name__} and "
                f"{type(content).__name__}; an image is written <image_placeholder> in the content"
            )
        conversation.append_message(role, content.strip())
    return conversation.get_prompt().strip()
