"""What a server grants: keys, sizes, times, defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flashjanus.errors import InputError
from flashjanus.sampling import values
from flashjanus.sampling.options import PRESETS

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and policies of a server; sizes in bytes, times in seconds. Raises InputError for a preset there is not.

    names: by which requests may name the model, besides its own name; the first is the one that replies show.
    keys: API keys, any of which opens /v1 (none: no key is asked for). key_requests: requests that each key may have at
    once, or without keys each address. origins: of web pages that browsers may let call the server, "*" for any.
    hosts: by which clients may name the server (none: any). Where there is no key, this keeps out web pages whose own
    name was made to mean this machine.

    body_bytes: of a request's body, which must arrive within body_seconds. images, image_bytes, image_pixels: images of
    a conversation, and the size of each. prompt_chars: of a prompt or of all text of a conversation. max_tokens: that a
    request may ask for (None: what the model's context holds); default_tokens: where it does not say. max_steps: of
    each image (None: the model's own bound). max_candidates: of best_of. max_side: of images, in pixels.
    preset: of images whose request names neither a preset nor a quality. full_previews: partial images come from the
    VAE, and not from a linear map of the latents, which costs nothing and shows blurs.

    deadline: from a request's arrival to its end. drain: that running requests have once the server is told to stop.
    keepalive: between comments in a stream in which nothing else happens. stall: after which a client that reads
    nothing counts as gone.

    remote_hosts: from which images are fetched where a request names them by URL (none: from nowhere; ".example.org"
    stands for all hosts below it). remote_http: also without TLS. remote_private: also from private addresses.
    remote_seconds: that a fetch may take.

    log_prompts: whether logs hold prompts and messages.
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
    """Keys of a file, one a line (lines that begin with # are comments), and of a list between commas. Raises
    InputError for a file that cannot be read, and where there is no key in one of them."""
    found = [key.strip() for key in (environment or "").split(",")]
    if environment is not None and not any(found):
        raise InputError(
            "expected API keys in the environment, between commas, and there is none; unset it for no keys"
        )
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the API keys in {file}: {error}") from error
        listed = [line for line in lines if line and not line.startswith("#")]
        if not listed:
            raise InputError(f"expected API keys in {file}, one a line, and there is none")
        found += listed
    keys = tuple(dict.fromkeys(key for key in found if key))
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"API key {number}: expected printable ASCII without spaces")  # as a header must be
    return keys
