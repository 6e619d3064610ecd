"""Turn tokens into the text of an answer, which ends before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from flashjanus.inputs.tokenizer import StreamDecoder, Tokenizer


class Answer:
    """The text of one row, piece by piece. `ended` is true once a stop string is complete; no part of it is passed on.

    If there are several stop strings, the one that is complete first counts, however the text is cut into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.ended = False
        self._decoder, self._stops = StreamDecoder(tokenizer), stops
        self._held = ""

    def push(self, token: int) -> str:
        """The new text up to where a stop string might begin. The rest is held back."""
        return self._passed(self._decoder.push(token))

    def finish(self) -> str:
        """The text that was held back."""
        text = self._passed(self._decoder.finish())
        held, self._held = self._held, ""
        return text + held

    def _passed(self, text: str) -> str:
        if self.ended:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.ended, self._held = True, ""
            return text[: min(found)[1]]
        length = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]


def _begun(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
