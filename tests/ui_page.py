"""The playground's handlers, called as gradio calls them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, TypeVar

import gradio as gr
from flashjanus import JanusFlow
from flashjanus.serving import AsyncEngine
from flashjanus.serving.ui import controls
from flashjanus.serving.ui.ask_tab import AskTab
from flashjanus.serving.ui.draw_tab import DrawTab
from flashjanus.serving.ui.running import Running

T = TypeVar("T")
ME: Any = SimpleNamespace(session_hash="me")
SOMEBODY: Any = SimpleNamespace(session_hash="somebody")


@cache
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", dtype="float32")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


class Page:
    """The tabs of an engine, whose handlers are called as gradio calls them."""

    def __init__(self, engine: AsyncEngine, **most: float) -> None:
        self.engine, self.running = engine, Running()
        with gr.Blocks(analytics_enabled=False):
            self.drawing = DrawTab(engine, self.running, most, None)
            self.asking = AskTab(engine, self.running, most, None)

    def draw(
        self, prompt: str, *, new_seed: bool = False, previews: str = "quick", before: Any = (), **given: Any
    ) -> Any:
        tab = self.drawing
        return tab.drawn(ME, [*before], prompt, new_seed, previews, *values(tab.controls, given))

    def ask(self, text: str, *files: str, conversation: Any = (), **given: Any) -> Any:
        tab = self.asking
        question = {"text": text, "files": [*files]}
        return tab.answered(ME, question, [*conversation], *values(tab.controls, given))

    async def settled(self) -> None:
        while (stats := self.engine.stats()).queued or stats.image_rows or stats.answer_rows:
            await asyncio.sleep(0.02)


def values(made: controls.Controls, given: dict[str, Any]) -> list[Any]:
    """What the controls hold: their own values, but for those given."""
    return [given.get(name, one.value) for name, one in made.by_name.items()]  # type: ignore[attr-defined]


@asynccontextmanager
async def page(**most: float) -> AsyncIterator[Page]:
    async with AsyncEngine(model()) as engine:
        yield Page(engine, **most)


async def seen(changes: AsyncIterator[T]) -> list[T]:
    return [change async for change in changes]
