"""Reads from a body what to do: answer a conversation, or draw a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.responses.bodies import AllowedTools, ImageCall, InputImage, Refusal, ToolChoice

Part = dict[str, Any]
"""A part of type text or input_image, as media.conversation reads it; "where" names its field."""
Turn = dict[str, Any]
"""A turn with a role and content, which is a list of parts."""


def turns_of(body: Any) -> list[Turn]:
    """The turns of a ResponseBody: the system's first, the user's last, with neighboring turns of one role joined. A
    drawn image is in an assistant turn. Raises ApiError."""
    turns: list[Turn] = []
    if body.instructions:
        turns.append({"role": "system", "content": [{"type": "text", "text": body.instructions}]})
    for index, item in enumerate(_items(body.input)):
        where = f"input[{index}]" if isinstance(body.input, list) else "input"
        role, parts = _message(item, where)
        if not isinstance(item, ImageCall):
            _check(turns, role, parts, where)
        _add(turns, role, parts)
    if not turns or turns[-1]["role"] != "user":
        raise _refused("input", "expected a user message at the end")
    return turns


def _check(turns: list[Turn], role: str, parts: list[Part], where: str) -> None:
    """Check that a message may follow these turns."""
    if role == "system" and any(turn["role"] != "system" for turn in turns):
        raise _refused(where, "expected system and developer messages before all others")
    if role == "assistant" and not any(turn["role"] == "user" for turn in turns):
        raise _refused(where, "expected a user message before those of the assistant")
    for part in _images([{"role": role, "content": parts}] if role != "user" else []):
        raise _refused(part["where"], f"expected images only in user messages, got one in a message of the {role}")
    if not any("text" not in part or part["text"].strip() for part in parts):
        raise _refused(where, f"expected text or an image, got an empty message of the {role}")


def conversation_of(turns: list[Turn]) -> list[Turn]:
    """The same turns as the model reads them. A drawn image moves to the user's next turn and replaces the turn that
    asked for it, unless the assistant also said something."""
    read: list[Turn] = []
    drawn: list[Part] = []
    for turn in turns:
        parts = turn["content"]
        if turn["role"] == "assistant":
            images = [*_images([turn])]
            drawn += images
            texts = [part for part in parts if "text" in part]
            parts = texts if any(part["text"].strip() for part in texts) else []
            if images and not parts and read and read[-1]["role"] == "user" and not any(_images(read[-1:])):
                read.pop()
        elif turn["role"] == "user":
            parts, drawn = drawn + parts, []
        if parts:
            _add(read, turn["role"], parts)
    return read


def _add(turns: list[Turn], role: str, parts: list[Part]) -> None:
    """Append a turn, or extend the last one."""
    if turns and role == turns[-1]["role"] and role != "system":  # media.conversation joins the system's messages
        last = turns[-1]["content"]
        last += [{"type": "text", "text": "\n"}, *parts] if parts and last and "text" in last[-1] else parts
    else:
        turns.append({"role": role, "content": [*parts]})


def _items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _message(item: Any, where: str) -> tuple[str, list[Part]]:
    if isinstance(item, ImageCall):
        url = f"data:image/{item.output_format or 'png'};base64,{item.result}"
        shown = {"type": "input_image", "image_url": url, "where": f"{where}.result"}
        return "assistant", [] if item.result is None else [shown]
    role, content = (item["role"], item["content"]) if isinstance(item, Mapping) else (item.role, item.content)
    if isinstance(content, str):
        return _role(role), [{"type": "text", "text": content}]
    return _role(role), [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _part(part: Any, where: str) -> Part:
    if isinstance(part, InputImage):
        return {"type": "input_image", "image_url": part.image_url, "where": where}
    return {"type": "text", "text": part.refusal if isinstance(part, Refusal) else part.text}


def tool_of(body: Any, turns: list[Turn]) -> Any:
    """The ImageTool that has to draw, or None if the conversation is to be answered. Raises ApiError."""
    tools, choice = body.tools or [], body.tool_choice
    if len(tools) > 1:
        raise _refused("tools[1]", "expected one tool, image_generation, got more")
    mode = "required" if isinstance(choice, ToolChoice) else choice.mode if isinstance(choice, AllowedTools) else choice
    if mode == "required" and not tools:
        raise _refused("tools", 'expected [{"type": "image_generation"}], because tool_choice requires it')
    if not tools or mode == "none" or (mode != "required" and any(_images(turns))):
        return None
    for part in _images(turns[-1:]):
        raise _refused(
            part["where"], "expected no image in the message that is drawn, because the model draws from text"
        )
    return tools[0]


def prompt_of(turns: list[Turn]) -> str:
    """The text to draw: the system's text and the user's last message."""
    said = [turn for turn in turns if turn["role"] == "system"] + turns[-1:]
    return "\n\n".join("".join(part["text"] for part in turn["content"] if "text" in part) for turn in said)


def texts(turns: list[Turn]) -> list[list[str]]:
    """The texts for the log, without images."""
    return [[turn["role"], " ".join(part.get("text", "(image)") for part in turn["content"])] for turn in turns]


def _images(turns: list[Turn]) -> Iterator[Part]:
    return (part for turn in turns for part in turn["content"] if part["type"] == "input_image")


def _refused(field: str, words: str) -> ApiError:
    return ApiError(400, f"{field}: {words}", "invalid_value", field)
