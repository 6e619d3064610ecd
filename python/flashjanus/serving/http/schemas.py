"""The request bodies of images and chat, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, create_model

from flashjanus.sampling.options import ImageOptions, TokenOptions
from flashjanus.serving.http.fields import Body, Whole, extras, only

IMAGE_EXTRAS = (
    "preset",
    "num_inference_steps",
    "guidance_scale",
    "solver",
    "timestep_shift",
    "guidance_interval",
    "guidance_rescale",
    "uncond_every",
    "step_cache",
    "seed",
    "adapter",
    "best_of",
    "accept_above",
)
TEXT_EXTRAS = ("seed", "top_k", "repetition_penalty", "adapter")
MOST_IMAGES = 10
MOST_ANSWERS = 8
MOST_STOPS = 4
MOST_MESSAGES, MOST_PARTS = 1024, 128
Quality: TypeAlias = Literal["auto", "low", "medium", "high", "standard", "hd"]


Images: TypeAlias = Annotated[int, Field(ge=1, le=MOST_IMAGES), Whole]
Answers: TypeAlias = Annotated[int, Field(ge=1, le=MOST_ANSWERS), Whole]
Tokens: TypeAlias = Annotated[int, Field(ge=1), Whole]
Likeliest: TypeAlias = Annotated[int, Field(ge=0, le=20), Whole]
Percent: TypeAlias = Annotated[int, Field(ge=0, le=100), Whole]
Previews: TypeAlias = Annotated[int, Field(ge=0, le=3), Whole]
Size: TypeAlias = Annotated[str, Field(json_schema_extra={"pattern": r"^(auto|[1-9][0-9]*x[1-9][0-9]*)$"})]


class _ImageFields(Body):
    """Draws images of a prompt."""

    prompt: str = Field(description="what to draw", min_length=1)
    model: str | None = Field(None, description="the name of the served model, or of one of its adapters")
    n: Images | None = Field(None, description="the number of images (default: 1)")
    size: Size | None = Field(
        None,
        description="WIDTHxHEIGHT, or auto for the model's own size; other sizes are resampled from it, and cropped if "
        "their proportions differ (default: auto)",
    )
    quality: Quality | None = Field(
        None,
        description="low, medium (or standard) and high (or hd) are the presets fast, balanced and exact "
        "(default: auto, the server's preset)",
    )
    response_format: Annotated[
        Any, only("b64_json", why="images are sent in the reply, and none is kept under a URL")
    ] = None
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="default: png")
    output_compression: Percent | None = Field(
        None, description="quality of jpeg and webp; 100 is the best (default: 100)"
    )
    background: Annotated[Any, only("auto", "opaque", why="the model draws no transparency")] = None
    moderation: Literal["auto", "low"] | None = Field(None, description="accepted; this server moderates nothing")
    style: Annotated[Any, only(why="the model has no styles; describe one in the prompt")] = None
    user: str | None = Field(None, description="accepted; this server tells users apart by their keys alone")
    stream: bool | None = Field(None, description="send server-sent events (default: false)")
    partial_images: Previews | None = Field(
        None, description="with stream: the most previews of each image (default: 0)"
    )


ImageBody = create_model(
    "ImageBody", __base__=_ImageFields, __doc__=_ImageFields.__doc__, **extras(ImageOptions, IMAGE_EXTRAS)
)


class ImageUrl(Body):
    """The URL of an image, and the detail at which to read it."""

    url: str = Field(description="data:image/...;base64,..., or https://... of a host that the server allows")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="accepted; the model sees every image in one resolution"
    )


class TextPart(Body):
    """Text of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class ImageUrlPart(Body):
    """An image of a user message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputImagePart(Body):
    """An image of a user message, as the Responses API spells it."""

    type: Literal["input_image"]
    image_url: str = Field(description="a URL as in ImageUrl")
    detail: Literal["auto", "low", "high"] | None = None


PARTS = {
    "text": "<text>",
    "input_text": "<text>",
    "output_text": "<text>",
    "image_url": "<image>",
    "input_image": "<input>",
}


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return PARTS.get(kind) if isinstance(kind, str) else None


def _listed(value: Any) -> str:
    return "<list>" if isinstance(value, list) else "<string>"


Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImageUrlPart, Tag("<image>")]
    | Annotated[InputImagePart, Tag("<input>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part_type",
        custom_error_message="expected a part whose type is text, image_url, input_text or input_image",
    ),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Part], Tag("<list>"), Field(max_length=MOST_PARTS)],
    Discriminator(_listed),
]
Texts: TypeAlias = Annotated[
    Annotated[str, Tag("<string>"), Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Tag("<list>"), Field(max_length=MOST_STOPS)]
    | Annotated[None, Tag("<none>")],
    Discriminator(lambda value: "<none>" if value is None else _listed(value)),
]
_NO_TOOLS = "the model calls no tools"


class Message(Body):
    """A turn of a conversation. An assistant's may be an earlier answer as it was sent."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[Any, only("", why="the model tells participants apart by their roles alone")] = None
    refusal: Annotated[Any, only(why="the model has no refusals apart from its text")] = None
    annotations: Annotated[Any, only([], why="the model reads text and images alone")] = None
    audio: Annotated[Any, only(why="the model hears nothing")] = None
    tool_calls: Annotated[Any, only([], why=_NO_TOOLS)] = None
    function_call: Annotated[Any, only(why=_NO_TOOLS)] = None


class StreamOptions(Body):
    """What a stream reports besides the answer."""

    include_usage: bool | None = Field(None, description="send a last chunk with the token counts")
    include_obfuscation: Annotated[Any, only(False, why="chunks are sent as they are")] = None


class _ChatFields(Body):
    """Answers a conversation."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    model: str | None = Field(None, description="the name of the served model, or of one of its adapters")
    n: Answers | None = Field(None, description="the number of answers (default: 1)")
    max_tokens: Tokens | None = Field(None, description="the older name of max_completion_tokens")
    max_completion_tokens: Tokens | None = Field(None, description="the most tokens of the answer")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always picks the likeliest token (default: 1)")
    top_p: float | None = Field(None, ge=0, le=1, description="default: 1")
    stop: Texts = Field(None, description="a text, or up to four, before which the answer ends")
    logprobs: bool | None = Field(None, description="return the log-probability of each token (default: false)")
    top_logprobs: Likeliest | None = Field(
        None, description="with logprobs: how many of the likeliest tokens to return as well"
    )
    stream: bool | None = Field(None, description="send server-sent events (default: false)")
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[Any, only(0, 0.0, why="the engine has repetition_penalty instead")] = None
    presence_penalty: Annotated[Any, only(0, 0.0, why="the engine has repetition_penalty instead")] = None
    response_format: Annotated[Any, only({"type": "text"}, why="answers are plain text")] = None
    modalities: Annotated[Any, only(["text"], why="answers are plain text")] = None
    audio: Annotated[Any, only(why="the model does not speak")] = None
    tools: Annotated[Any, only([], why=_NO_TOOLS)] = None
    tool_choice: Annotated[Any, only("none", "auto", why=_NO_TOOLS)] = None
    parallel_tool_calls: Annotated[Any, only(why=_NO_TOOLS)] = None
    functions: Annotated[Any, only([], why=_NO_TOOLS)] = None
    function_call: Annotated[Any, only("none", "auto", why=_NO_TOOLS)] = None
    logit_bias: Annotated[Any, only({}, why="the engine has no biases of tokens")] = None
    prediction: Annotated[Any, only(why="the engine takes no predicted answers")] = None
    reasoning_effort: Annotated[Any, only("none", why="the model does not reason apart from its answer")] = None
    verbosity: Annotated[Any, only(why="the model has no such setting; ask for it in words")] = None
    web_search_options: Annotated[Any, only(why="the model searches nothing")] = None
    service_tier: Annotated[Any, only("auto", "default", why="there is one tier")] = None
    store: Annotated[Any, only(False, why="nothing is stored")] = None
    metadata: Annotated[Any, only({}, why="nothing is stored")] = None
    user: str | None = Field(None, description="accepted; this server tells users apart by their keys alone")
    safety_identifier: str | None = Field(None, description="accepted, like user")
    prompt_cache_key: str | None = Field(None, description="accepted; the prefix cache is shared by all requests")


ChatBody = create_model(
    "ChatBody", __base__=_ChatFields, __doc__=_ChatFields.__doc__, **extras(TokenOptions, TEXT_EXTRAS)
)
