"""Conversations and prompts -> token ids, equal to the official `VLChatProcessor`'s for well-formed input.

A prompt is a list of segments: plain text, which can never become a control token, and controls, which are ids.
The official tokenizer splits at control tokens before BPE, so encoding the text segments one by one gives the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flashjanus.errors import InputError
from flashjanus.inputs.tokenizer import Tokenizer

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


IMAGE_KEYS = ("image", "path", "url", "base64")
"""Keys under which a part of type "image" may hold its source, as in transformers."""


@dataclass(frozen=True)
class Control:
    """Token ids placed by the engine, and how they are written in the formatted prompt."""

    text: str
    ids: tuple[int, ...]


Segment: TypeAlias = str | Control


@dataclass(frozen=True)
class ChatPrompt:
    """`ids` start with BOS; `images` are the sources as given, in the order of their places; `text` is for reading."""

    ids: list[int]
    images: list[Any]
    text: str


def encode_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, max_tokens: int | None = None
) -> ChatPrompt:
    """Ids of a conversation that ends with a user message, ready for the assistant's answer.

    `messages`: `{"role": "user" | "assistant" | "system", "content": str | [part, ...]}`, where a part is
    `{"type": "text", "text": str}`, `{"type": "image", "image" | "path" | "url" | "base64": source}` as in
    transformers, or `{"type": "image_url", "image_url": {"url": source}}` as in OpenAI's interface (also with the
    source itself as "image_url", and under its newer names input_text and input_image). A system message comes first
    and replaces the default system prompt; "" means none.
    Parts follow each other as they are, except that text right after an image starts on a new line, which is the
    form the model was trained on. Raises `InputError`, also for more than `max_tokens` ids.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InputError(f"messages must be a list of {{'role', 'content'}}, got {type(messages).__name__}")
    images: list[Any] = []
    system = DEFAULT_SYSTEM_PROMPT
    turns: list[list[Segment]] = []
    for index, message in enumerate(messages):
        role, content = _read_message(message, f"messages[{index}]")
        if role == "system":
            if index:
                raise InputError(f"messages[{index}]: a system message must be the first one")
            system = "".join(str(part) for part in _read_content(content, role, "messages[0]", tokenizer, images))
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            raise InputError(
                f"messages[{index}]: expected role {expected!r} (user and assistant alternate), got {role!r}"
            )
        segments = strip_segments(_read_content(content, role, f"messages[{index}]", tokenizer, images))
        if not segments:
            raise InputError(f"messages[{index}]: the {role} message is empty; give it text or an image")
        turns.append(segments)
    if not turns:
        raise InputError("the conversation has no user message; give at least one")
    if len(turns) % 2 == 0:
        raise InputError("the last message is from the assistant; end with a user message (prefill is not supported)")
    segments = format_turns(turns, tokenizer, system)
    return ChatPrompt(encode_segments(segments, tokenizer, max_tokens), images, segments_text(segments))


def encode_generation_prompt(prompt: str, tokenizer: Tokenizer, max_tokens: int | None = None) -> list[int]:
    """Ids of "draw `prompt`": BOS, one user turn without a system prompt, the empty answer, the generation tag.

    The tag is the last id; the time embedding takes its place in the model. Raises `InputError` for an empty prompt,
    lone surrogates, or more than `max_tokens` ids.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be a str, got {type(prompt).__name__}")
    if not prompt.strip():
        raise InputError("the prompt is empty; describe the image to draw")
    return encode_segments(generation_segments([[prompt]], tokenizer), tokenizer, max_tokens)


def generation_segments(turns: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> list[Segment]:
    """The formatted conversation without a system prompt, followed by the generation tag."""
    tag = Control(tokenizer.image_gen_tag, (tokenizer.image_gen_id,))
    return [*format_turns([strip_segments(turn) for turn in turns], tokenizer, ""), tag]


def image_segment(tokenizer: Tokenizer) -> Control:
    """The place of one image: start tag, `num_image_tokens` image tags, end tag."""
    features = (tokenizer.image_id,) * tokenizer.num_image_tokens
    return Control(tokenizer.image_tag, (tokenizer.image_start_id, *features, tokenizer.image_end_id))


def format_turns(turns: Sequence[Sequence[Segment]], tokenizer: Tokenizer, system: str) -> list[Segment]:
    """`{system}\\n\\n{user}: ...\\n\\n{assistant}: ...<eos>...{assistant}:` of stripped turns, user first."""
    template = tokenizer.template
    segments: list[Segment] = [system + template.separator] if system else []
    for index, turn in enumerate(turns):
        by_user = index % 2 == 0
        role = _control_or_text(template.user if by_user else template.assistant, tokenizer)
        end = template.separator if by_user else _control_or_text(template.end, tokenizer)
        segments += [role, ": ", *turn, end]
    return strip_segments([*segments, _control_or_text(template.assistant, tokenizer), ":"])


def strip_segments(segments: Sequence[Segment]) -> list[Segment]:
    """`str.strip()` of the joined prompt: a control counts as a character that is not white space."""
    kept: list[Segment] = [segment for segment in segments if segment]
    while kept and isinstance(kept[0], str):
        if text := kept[0].lstrip():
            kept[0] = text
            break
        del kept[0]
    while kept and isinstance(kept[-1], str):
        if text := kept[-1].rstrip():
            kept[-1] = text
            break
        del kept[-1]
    return kept


def segments_text(segments: Sequence[Segment]) -> str:
    """The prompt as the official code would print it: each image as its tag."""
    return "".join(segment if isinstance(segment, str) else segment.text for segment in segments)


def encode_segments(segments: Sequence[Segment], tokenizer: Tokenizer, max_tokens: int | None = None) -> list[int]:
    """BOS (if the tokenizer adds one) and the ids of all segments; neighboring texts are one text to the BPE.

    Raises `InputError` for more than `max_tokens` ids; a text that must exceed them is refused before encoding.
    """
    ids = [tokenizer.bos_id] if tokenizer.adds_bos else []
    if max_tokens is not None:
        chars = sum(len(segment) for segment in segments if isinstance(segment, str))
        controls = sum(len(segment.ids) for segment in segments if isinstance(segment, Control))
        least = len(ids) + controls + -(-chars // tokenizer.longest_token)
        if least > max_tokens:
            raise InputError(
                f"the prompt is too long: at least {least} tokens ({chars} characters), {_limit(max_tokens)}"
            )
    text: list[str] = []
    for segment in [*segments, Control("", ())]:  # the last one flushes the text before it
        if isinstance(segment, str):
            text.append(segment)
            continue
        if text:
            ids += tokenizer.encode_text("".join(text))
            text.clear()
        ids += segment.ids
    if max_tokens is not None and len(ids) > max_tokens:
        raise InputError(f"the prompt is too long: {len(ids)} tokens, {_limit(max_tokens)}")
    return ids


def _limit(max_tokens: int) -> str:
    return f"at most {max_tokens} fit; shorten it or use fewer images"


def _control_or_text(text: str, tokenizer: Tokenizer) -> Segment:
    """A word of the template: the control token with this spelling if the tokenizer has one, else text."""
    token_id = tokenizer.control_id(text)
    return text if token_id is None else Control(text, (token_id,))


def _read_message(message: object, where: str) -> tuple[str, object]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: expected {{'role': ..., 'content': ...}}, got {type(message).__name__}")
    given = {
        key for key, value in message.items() if value is not None or key == "content"
    }  # a dumped answer has further keys, which are None
    if given != {"role", "content"}:
        raise InputError(f"{where}: expected the keys 'role' and 'content', got {sorted(map(str, given))}")
    role = message["role"]
    if role not in ("user", "assistant", "system"):
        raise InputError(f"{where}: role must be 'user', 'assistant' or 'system', got {role!r}")
    return role, message["content"]


def _read_content(content: object, role: str, where: str, tokenizer: Tokenizer, images: list[Any]) -> list[Segment]:
    """Segments of one message; appends its images to `images`."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InputError(f"{where}: content must be a str or a list of parts, got {type(content).__name__}")
    segments: list[Segment] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text"):
            text = _field(part, "text", place)
            if not isinstance(text, str):
                raise InputError(f"{place}: 'text' must be a str, got {type(text).__name__}")
            if not text:
                continue
            starts_line = bool(segments) and isinstance(segments[-1], Control) and not text[0].isspace()
            segments.append("\n" + text if starts_line else text)
        elif kind in ("image", "image_url", "input_image"):
            if role != "user":
                raise InputError(f"{place}: only user messages can hold images, this one is from the {role}")
            images.append(_image_source(part, place))
            segments.append(image_segment(tokenizer))
        else:
            raise InputError(f"{place}: expected a part of type 'text' or 'image', got {part!r:.80}")
    return segments


def _image_source(part: Mapping[str, Any], place: str) -> Any:
    """The source for `load_image`, which refuses URLs that need the network."""
    if part["type"] != "image":
        url = _field(part, "image_url", place)
        return _field(url, "url", place) if isinstance(url, Mapping) else url
    given = [key for key in IMAGE_KEYS if part.get(key) is not None]
    if len(given) != 1:
        raise InputError(
            f"{place}: expected one of the keys {', '.join(map(repr, IMAGE_KEYS))}, got "
            f"{' and '.join(map(repr, given)) or 'none of them'}"
        )
    source = part[given[0]]
    if given[0] == "base64":
        if not isinstance(source, str):
            raise InputError(f"{place}: 'base64' must be a str, got {type(source).__name__}")
        return source if source[:5].lower() == "data:" else f"data:;base64,{source}"
    return source


def _field(part: object, key: str, where: str) -> Any:
    if not isinstance(part, Mapping) or part.get(key) is None:
        raise InputError(f"{where}: the part needs the key {key!r}")
    return part[key]
