"""The limits, times and defaults that a server applies, and its API keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flashjanus.errors import InputError
from flashjanus.sampling import values
from flashjanus.sampling.options import PRESETS

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and policies of a server. Sizes are in bytes and times in seconds. Raises InputError for an unknown
    preset.

    names: further names by which requests may call the model; replies show the first. keys: API keys, any of which
    opens /v1; without keys, none is asked for. key_requests: how many requests each key may have at once, or each
    address if there are no keys. origins: origins of web pages that browsers may let call the server, "*" for any.
    hosts: names by which clients may address the server; empty means any name. Without keys, this list keeps out web
    pages whose domain was made to resolve to this machine.

    body_bytes: the largest request body, which must arrive within body_seconds. images, image_bytes, image_pixels: the
    most images in a conversation, and the largest size of each. prompt_chars: the longest prompt, or text of a whole
    conversation. max_tokens: the most tokens that a request may ask for (None: as many as the model's context holds);
    default_tokens: how many it gets by default. max_steps: the most steps of an image (None: the model's own bound).
    max_candidates: the highest best_of. max_side: the longest side of an image, in pixels. preset: the preset for
    images whose request names neither a preset nor a quality. full_previews: whether the VAE decodes partial images;
    otherwise a linear map of the latents makes blurred ones at no cost.

    deadline: the time from a request's arrival to its end. drain: the time that running requests get once the server is
    told to stop. keepalive: the time between comments in a stream that is otherwise silent. stall: the time after which
    a client that reads nothing counts as gone.

    remote_hosts: hosts from which images named by URL may be fetched (empty: none; ".example.org" stands for all hosts
    below it). remote_http: whether to allow fetches without TLS. remote_private: whether to allow private addresses.
    remote_seconds: the longest time that a fetch may take.

    log_prompts: whether logs contain prompts and messages.
    """

    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    key_requests: int | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    body_bytes: int = 64 * MIB
    body_seconds: float = 60.0
    images: int = 16
    image_bytes: int = 20 * MIB
    image_pixels: int = 50_000_000
    prompt_chars: int = 200_000
    max_tokens: int | None = None
    default_tokens: int = 1024
    max_steps: int | None = None
    max_candidates: int = 64
    max_side: int = 2048
    preset: str = "exact"
    full_previews: bool = True
    deadline: float = 600.0
    drain: float = 30.0
    keepalive: float = 15.0
    stall: float = 60.0
    remote_hosts: tuple[str, ...] = ()
    remote_http: bool = False
    remote_private: bool = False
    remote_seconds: float = 10.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        values.choice("preset", self.preset, tuple(PRESETS))


def read_keys(file: Path | None, environment: str | None) -> tuple[str, ...]:
    """Read API keys from a file, one per line (lines that begin with # are comments), and from a comma-separated
    list. Raises InputError if the file cannot be read, or if one of the two sources is given but has no key."""
    found = [key.strip() for key in (environment or "").split(",")]
    if environment is not None and not any(found):
        raise InputError(
            "expected API keys in the environment, separated by commas, got none; unset the variable to run without "
            "keys"
        )
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the API keys in {file}: {error}") from error
        listed = [line for line in lines if line and not line.startswith("#")]
        if not listed:
            raise InputError(f"expected API keys in {file}, one per line, got none")
        found += listed
    keys = tuple(dict.fromkeys(key for key in found if key))
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"API key {number}: expected printable ASCII without spaces")  # as a header must be
    return keys
