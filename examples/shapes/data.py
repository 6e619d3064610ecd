"""Batches for the stages: prompts with several noise levels, and pictures with several questions each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flashjanus.inputs.prompts import encode_chat, encode_generation_prompt
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.measure.evaluation import language, world
from janusflow import Packed
from loop import Draw
from torch import Tensor

# Shares of the kinds among the scenes that are kept.
DRAWN: dict[world.Kind, float] = {
    "single_object": 0.10,
    "colors": 0.16,
    "two_objects": 0.14,
    "counting": 0.20,
    "position": 0.22,
    "color_attribution": 0.18,
}
# How often a scene of each kind is taken in a step: what is learned slowest, more often than it is kept.
TAKEN: dict[world.Kind, float] = {
    "single_object": 0.05,
    "colors": 0.10,
    "two_objects": 0.14,
    "counting": 0.17,
    "position": 0.33,
    "color_attribution": 0.21,
}
TOPIC_SHARES: dict[language.Topic, float] = {
    "color": 0.13,
    "shape": 0.13,
    "count": 0.15,
    "position": 0.18,
    "yes_no": 0.13,
    "relation": 0.24,
    "background": 0.04,
}


def drawn_scenes(rng: np.random.Generator, count: int) -> list[world.Scene]:
    """Scenes to be drawn from their captions."""
    kinds = rng.choice(len(DRAWN), count, p=list(DRAWN.values()))
    return [world.sample_scene(rng, "train", tuple(DRAWN)[kind]) for kind in kinds]


def seen_scenes(rng: np.random.Generator, count: int) -> list[world.Scene]:
    """Scenes to be asked about: half of them of any things in any places."""
    captioned = drawn_scenes(rng, count)
    return [scene if i % 2 else world.sample_scene(rng, "train", "mixed") for i, scene in enumerate(captioned)]


class Encoder:
    """Captions and questions -> ids, as the package's own pipeline writes them; remembers what it has seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        ids = self._chat("?")
        self.picture = ids[: ids.index(tokenizer.image_end_id) + 1]
        self.image_start = ids.index(tokenizer.image_start_id)

    def prompt(self, caption: str) -> list[int]:
        """Ids of a drawing prompt without its trailing tag, which the time embedding replaces."""
        return self._remember(caption, lambda: encode_generation_prompt(caption, self.tokenizer)[:-1])

    def question(self, text: str) -> list[int]:
        """What follows the picture up to the answer."""
        return self._remember(f"\n{text}", lambda: self._chat(text)[len(self.picture) :])

    def answer(self, text: str) -> list[int]:
        return self._remember(f" {text}", lambda: [*self.tokenizer.encode_text(f" {text}"), self.tokenizer.eos_id])

    def _chat(self, text: str) -> list[int]:
        content = [{"type": "image", "image": "scene"}, {"type": "text", "text": text}]
        return encode_chat([{"role": "user", "content": content}], self.tokenizer).ids

    def _remember(self, key: str, encode: Callable[[], list[int]]) -> list[int]:
        if key not in self._known:
            self._known[key] = encode()
        return self._known[key]


@dataclass(frozen=True)
class DrawBatch:
    """ids (B, P) padded on the left; packed for `levels` blocks of 1 + N tokens after each prompt."""

    ids: Tensor
    packed: Packed


def draw_batch(
    prompts: Sequence[list[int]], levels: int, tokens: int, dropped: Tensor, device: torch.device
) -> DrawBatch:
    """dropped (B, levels): blocks that see of their prompt only its first token, as unconditional rows do."""
    count, block = len(prompts), tokens + 1
    # The whole length is a multiple of 32, where the CPU's bf16 products are twice as fast.
    width = -(-(max(map(len, prompts)) + levels * block) // 32) * 32 - levels * block
    ids = torch.zeros(count, width, dtype=torch.long)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt)
    pad = width - lengths
    column = torch.arange(width)
    positions = torch.cat(
        [(column - pad[:, None]).clamp_min(0), (lengths[:, None] + torch.arange(block)).repeat(1, levels)], 1
    )
    length = width + levels * block
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    group = torch.cat([torch.full((width,), -1), torch.arange(levels).repeat_interleave(block)])
    sees = causal & ((group[None] == group[:, None]) | (group[None] == -1))
    sees = sees.expand(count, length, length).clone()
    sees[:, :, :width] &= (column >= pad[:, None])[:, None]
    of_row = torch.cat([torch.zeros(count, width, dtype=torch.bool), dropped.repeat_interleave(block, 1)], 1)
    beyond_first = torch.cat([column > pad[:, None], torch.zeros(count, length - width, dtype=torch.bool)], 1)
    sees &= ~(of_row[:, :, None] & beyond_first[:, None])
    return DrawBatch(ids.to(device), Packed(positions.to(device), _additive(sees, device)))


@dataclass(frozen=True)
class AnswerBatch:
    """ids (B, L); targets (B, L): the id that each column should predict, or -100; topics (B, L) of the targets."""

    ids: Tensor
    packed: Packed
    targets: Tensor
    topics: Tensor


def answer_batch(encoder: Encoder, asked: Sequence[Sequence[language.Question]], device: torch.device) -> AnswerBatch:
    """One row a picture: the picture, then its questions side by side, none of which sees another."""
    prefix = encoder.picture
    tails = [[(q, encoder.question(q.text), encoder.answer(q.answer)) for q in questions] for questions in asked]
    length = len(prefix) + max(sum(len(a) + len(b) - 1 for _, a, b in tail) for tail in tails)
    length = -(-length // 32) * 32
    ids = torch.full((len(asked), length), encoder.tokenizer.pad_id)
    positions, group = torch.zeros_like(ids), torch.full_like(ids, -2)
    targets, topics = torch.full_like(ids, -100), torch.full_like(ids, -1)
    ids[:, : len(prefix)] = torch.tensor(prefix)
    positions[:, : len(prefix)] = torch.arange(len(prefix))
    group[:, : len(prefix)] = -1
    for row, tail in enumerate(tails):
        at = len(prefix)
        for number, (q, words, answer) in enumerate(tail):
            tokens = words + answer[:-1]
            here = slice(at, at + len(tokens))
            ids[row, here] = torch.tensor(tokens)
            positions[row, here] = len(prefix) + torch.arange(len(tokens))
            group[row, here] = number
            first = at + len(words) - 1
            targets[row, first : first + len(answer)] = torch.tensor(answer)
            topics[row, first : first + len(answer)] = language.TOPICS.index(q.topic)
            at += len(tokens)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    sees = causal & ((group[:, None] == group[:, :, None]) | (group[:, None] == -1))
    sees |= torch.eye(length, dtype=torch.bool)
    packed = Packed(positions.to(device), _additive(sees, device))
    return AnswerBatch(ids.to(device), packed, targets.to(device), topics.to(device))


def ask(rng: np.random.Generator, scene: world.Scene, count: int) -> list[language.Question]:
    """`count` questions of mixed topics."""
    names, shares = tuple(TOPIC_SHARES), np.array(list(TOPIC_SHARES.values()))
    questions: list[language.Question] = []
    while len(questions) < count:
        question = language.question(rng, scene, names[rng.choice(len(names), p=shares / shares.sum())])
        if question:
            questions.append(question)
    return questions


def normal(draw: Draw, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw.torch)


def _additive(sees: Tensor, device: torch.device) -> Tensor:
    """(B, 1, L, L): 0 where one token sees another, else so low that a softmax leaves nothing."""
    return torch.zeros(sees.shape).masked_fill_(~sees, -30000.0)[:, None].to(device)
