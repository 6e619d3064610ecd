"""Names of files that are made from prompts."""

from __future__ import annotations

MOST_CHARACTERS = 48
"""Of the widest letters these take 192 bytes; most file systems allow 255 for a name."""


def slug(prompt: str) -> str:
    """The prompt as a file name: its first words, lower-case letters and digits of any script, joined by dashes.

    Only a first word that is too long by itself is cut within.
    """
    words = "".join(c if c.isalnum() else " " for c in prompt[:1000].lower()).split()
    if not words:
        return "image"
    name = words[0][:MOST_CHARACTERS]
    for word in words[1:]:
        if len(name) + 1 + len(word) > MOST_CHARACTERS:
            break
        name += f"-{word}"
    return name
