"""The outcome of one request."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, fields
from typing import Any

SHOWN = 300
"""How many characters of an error's message are kept."""


@dataclass
class Sample:
    """The outcome of a request. Times are in seconds since the start; None means that it never happened.

    due: when the request should have been sent; all its latencies count from then. headers: arrival of the response's
    headers. event: the first event of its stream. pieces: arrival of each piece of text. partial: the first partial
    image. image: the last whole image. tokens: those of an answer, as the endpoint counts them, else its pieces.
    error: its kind or code.
    """

    kind: str
    due: float
    sent: float
    ended: float = 0.0
    headers: float | None = None
    event: float | None = None
    pieces: array[float] = field(default_factory=lambda: array("d"))
    partial: float | None = None
    image: float | None = None
    images: int = 0
    tokens: int = 0
    error: str | None = None
    message: str = ""

    def fail(self, error: str, message: object = "") -> None:
        self.error, self.message = error, " ".join(str(message).split())[:SHOWN]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "pieces": [*self.pieces]}

    @staticmethod
    def of_json(value: Any) -> Sample:
        """Read what `to_json` gave. Raises ValueError."""
        if not isinstance(value, dict) or value.keys() != {one.name for one in fields(Sample)}:
            raise ValueError("expected an object with the fields of a sample")
        pieces = value["pieces"]
        times = [value[name] for name in ("due", "sent", "ended")]
        later = [at for name in ("headers", "event", "partial", "image") if (at := value[name]) is not None]
        if not isinstance(pieces, list) or not all(isinstance(at, float | int) for at in (*times, *later, *pieces)):
            raise ValueError("expected numbers of seconds")
        if not isinstance(value["images"], int) or not isinstance(value["tokens"], int):
            raise ValueError("expected counts of images and tokens")
        error = value["error"]
        return Sample(**{**value, "pieces": array("d", pieces), "error": None if error is None else str(error)})
