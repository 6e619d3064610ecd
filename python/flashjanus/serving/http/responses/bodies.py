"""The body of POST /v1/responses, field by field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag, create_model

from flashjanus.serving.http.fields import Body, only
from flashjanus.serving.http.schemas import IMAGE_EXTRAS, TEXT_EXTRAS, ChatBody, ImageBody

LOGPROBS = "message.output_text.logprobs"
_NOT_STORED = "nothing is stored; send the earlier items in input"
_DRAWS_TEXT = "the model draws from text alone"


def _like(body: type[BaseModel], names: Iterable[str]) -> dict[str, Any]:
    """Take fields over from another body, for `create_model`."""
    return {name: (body.model_fields[name].annotation, body.model_fields[name]) for name in names}


class _ToolFields(Body):
    """Draws an image. It also takes image options that OpenAI's API does not have."""

    type: Literal["image_generation"]
    action: Annotated[Any, only("auto", "generate", why=_DRAWS_TEXT)] = None
    input_fidelity: Annotated[Any, only(why=_DRAWS_TEXT)] = None
    input_image_mask: Annotated[Any, only(why=_DRAWS_TEXT)] = None


_IMAGE_FIELDS = (
    "model",
    "size",
    "quality",
    "output_format",
    "output_compression",
    "background",
    "moderation",
    "partial_images",
    *IMAGE_EXTRAS,
)
ImageTool = create_model(
    "ImageTool", __base__=_ToolFields, __doc__=_ToolFields.__doc__, **_like(ImageBody, _IMAGE_FIELDS)
)


class InputText(Body):
    """Text of a message."""

    type: Literal["input_text"]
    text: str


class InputImage(Body):
    """An image of a user message."""

    type: Literal["input_image"]
    file_id: Annotated[Any, only(why="no files are kept; send the image in image_url")] = None
    image_url: str = Field(description="data:image/...;base64,..., or https://... of a host that the server allows")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="accepted; the model sees every image in one resolution"
    )


class OutputText(Body):
    """Text of an earlier answer, as the server sent it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[Any, only([], why="the model reads text and images alone")] = None
    logprobs: list[Any] | None = Field(None, description="accepted; the model reads the text")


class Refusal(Body):
    """A refusal that another model gave earlier; it is read as text."""

    type: Literal["refusal"]
    refusal: str


def _by(**kinds: str) -> Any:
    """Tag a value by its type, or by its role if it has no type."""

    def tag(value: Any) -> str | None:
        found = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        kind = found.get("type")
        if kind is None and "role" in found:
            kind = "message"
        return kinds.get(kind) if isinstance(kind, str) else None

    return tag


def _one_of(what: str, **kinds: str) -> Discriminator:
    words = f"expected {what} whose type is {' or '.join(kinds)}"
    return Discriminator(_by(**kinds), custom_error_type="kind_unknown", custom_error_message=words)


Part: TypeAlias = Annotated[
    Annotated[InputText, Tag("<text>")]
    | Annotated[InputImage, Tag("<image>")]
    | Annotated[OutputText, Tag("<output>")]
    | Annotated[Refusal, Tag("<refusal>")],
    _one_of("a part", input_text="<text>", input_image="<image>", output_text="<output>", refusal="<refusal>"),
]


def _listed(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<string>"


class InputMessage(Body):
    """A turn of the conversation. An assistant's turn may be an earlier answer, as the server sent it."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Annotated[str, Tag("<string>")] | Annotated[list[Part], Tag("<list>")], Discriminator(_listed)]
    id: str | None = Field(None, description="accepted; nothing is stored under it")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(None, description="accepted, as sent")
    phase: Literal["commentary", "final_answer"] | None = Field(
        None, description="accepted; all turns are read the same way"
    )


class ImageCall(Body):
    """An image that was drawn earlier, as the server sent it; the user's next message shows it to the model. The
    other fields that the server sent with it are accepted."""

    type: Literal["image_generation_call"]
    id: str | None = None
    status: Literal["in_progress", "generating", "completed", "failed"] | None = None
    result: str | None = Field(description="the image's file in base64; null if it was not drawn")
    action: str | None = None
    background: str | None = None
    error: Any = None
    native_size: str | None = None
    output_format: str | None = None
    quality: str | None = None
    revised_prompt: str | None = None
    score: float | None = None
    seed: int | None = None
    size: str | None = None


Item: TypeAlias = Annotated[
    Annotated[InputMessage, Tag("<message>")] | Annotated[ImageCall, Tag("<call>")],
    _one_of("an item", message="<message>", image_generation_call="<call>"),
]
Tool: TypeAlias = Annotated[
    Annotated[ImageTool, Tag("<tool>")],  # type: ignore[valid-type]
    _one_of("a tool (the model calls no functions)", image_generation="<tool>"),
]


class ToolChoice(Body):
    """The tool that the model has to use."""

    type: Literal["image_generation"]


class AllowedTools(Body):
    """The tools that the model may use (mode auto), or of which it has to use one (required)."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ToolChoice] = Field(min_length=1)


def _choice(value: Any) -> str | None:
    kinds = {"image_generation": "<tool>", "allowed_tools": "<allowed>"}
    return "<word>" if isinstance(value, str) else "<none>" if value is None else _by(**kinds)(value)


Choice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[ToolChoice, Tag("<tool>")]
    | Annotated[AllowedTools, Tag("<allowed>")]
    | Annotated[None, Tag("<none>")],
    Discriminator(
        _choice,
        custom_error_type="kind_unknown",
        custom_error_message="expected none, auto, required, or an object whose type is image_generation or "
        "allowed_tools",
    ),
]


class TextFormat(Body):
    """The format of the answer's text."""

    format: Annotated[Any, only({"type": "text"}, why="answers are plain text")] = None
    verbosity: Annotated[Any, only(why="the model has no such setting; ask for it in words")] = None


class Reasoning(Body):
    """Accepted if it asks for no reasoning."""

    effort: Annotated[Any, only("none", why="the model does not reason apart from its answer")] = None
    summary: Annotated[Any, only(why="the model does not reason apart from its answer")] = None
    generate_summary: Annotated[Any, only(why="the model does not reason apart from its answer")] = None


class ResponseStreamOptions(Body):
    """What a stream reports besides the answer."""

    include_obfuscation: Annotated[Any, only(False, why="events are sent as they are")] = None


class _ResponseFields(Body):
    """Answers a conversation or draws an image. The image_generation tool draws if it is offered and the input shows
    no image, or if tool_choice says so."""

    input: Annotated[
        Annotated[str, Tag("<string>"), Field(min_length=1)]
        | Annotated[list[Item], Tag("<list>"), Field(min_length=1)],
        Discriminator(_listed),
    ] = Field(description="a user message, or the items of a conversation that ends with one")
    instructions: str | None = Field(None, description="the system message, which comes before the input")
    tools: list[Tool] | None = Field(
        None, json_schema_extra={"maxItems": 1}, description="image_generation, or none (default: none)"
    )
    tool_choice: Choice = Field(
        None,
        description="none: answer; required, or an object that names the tool: draw; auto: draw unless the input "
        "shows an image (default: auto)",
    )
    max_output_tokens: int | None = Field(
        None, ge=1, description="the most tokens of an answer; images are not affected"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="how many of the likeliest tokens to return with each token of an answer"
    )
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None, description=f"{LOGPROBS}: the log-probability of each token; there is no reasoning to include"
    )
    stream_options: ResponseStreamOptions | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = Field(None, description="repeated in the reply, and not stored")
    text: TextFormat | None = None
    reasoning: Reasoning | None = None
    max_tool_calls: int | None = Field(None, ge=1, description="accepted; there is at most one call")
    parallel_tool_calls: bool | None = Field(None, description="accepted; there is at most one call")
    truncation: Annotated[Any, only("disabled", why="what does not fit is refused")] = None
    store: Annotated[Any, only(False, why="nothing is stored")] = None
    previous_response_id: Annotated[Any, only(why=_NOT_STORED)] = None
    conversation: Annotated[Any, only(why=_NOT_STORED)] = None
    background: Annotated[Any, only(False, why="nothing is stored, and a reply is sent when it is made")] = None
    prompt: Annotated[Any, only(why="no prompts are kept; send the text in input")] = None
    prompt_cache_retention: Annotated[Any, only("in_memory", why="prefixes are kept in memory alone")] = None
    context_management: Annotated[Any, only([], why="what does not fit is refused")] = None
    moderation: Annotated[Any, only(why="this server moderates nothing")] = None


ResponseBody = create_model(
    "ResponseBody",
    __base__=_ResponseFields,
    __doc__=_ResponseFields.__doc__,
    **_like(
        ChatBody,
        (
            "model",
            "temperature",
            "top_p",
            "stream",
            "service_tier",
            "user",
            "safety_identifier",
            "prompt_cache_key",
            *TEXT_EXTRAS,
        ),
    ),
)
