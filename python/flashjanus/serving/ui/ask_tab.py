"""The tab that answers questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from flashjanus.errors import FlashJanusError, InputError
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.messages import Answered, Begun, ChatRequest, Piece
from flashjanus.serving.ui import controls, views
from flashjanus.serving.ui.draw_tab import QUIET
from flashjanus.serving.ui.running import Running, frames

TAB = "ask"
SAMPLED = ("temperature", "top_p", "seed")
"""Options that matter only if tokens are sampled."""
EMPTY: dict[str, Any] = {"text": "", "files": []}
PLACEHOLDER = "Add an image and ask about it.\n\nThe button under a drawn image brings it here."


@dataclass
class Answer:
    """An answer in progress. reason: why it ended."""

    begun: bool = False
    text: str = ""
    reason: str | None = None

    async def write(self, engine: AsyncEngine, request: ChatRequest) -> None:
        """Write the answer until it ends. Raises FlashJanusError; canceling this task cancels the request."""
        async with await engine.submit(request) as events:
            async for event in events:
                if isinstance(event, Begun):
                    self.begun = True
                elif isinstance(event, Piece | Answered):
                    self.text += event.text
                    self.reason = event.reason if isinstance(event, Answered) else None


class AskTab:
    """The components of the tab; `wire` connects them."""

    def __init__(
        self, engine: AsyncEngine, running: Running, most: Mapping[str, float], deadline: float | None
    ) -> None:
        self.engine, self.running, self.deadline = engine, running, deadline
        self.controls = controls.answers(most)
        self.chat = gr.Chatbot(
            show_label=False,
            height="min(60vh, 640px)",
            min_height=280,
            placeholder=PLACEHOLDER,
            buttons=["copy"],
            layout="bubble",
            feedback_options=None,
            elem_id="fj-chat",
        )
        self.view = gr.HTML("", elem_id="fj-ask-view", visible=False)
        self.question = gr.MultimodalTextbox(
            show_label=False,
            placeholder="Ask about an image",
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            max_lines=6,
            elem_id="fj-question",
        )
        self.clear = gr.Button("Clear the conversation", size="sm", elem_id="fj-clear")
        with gr.Accordion("More", open=False, elem_id="fj-ask-more"):
            self.controls.add("adapter", "max_new_tokens", "do_sample", *SAMPLED)
            for name in SAMPLED:
                self.controls[name].interactive = False
        self.conversation = gr.State([])

    def wire(self) -> None:
        parts = [self.chat, self.question, self.conversation, self.view]
        self.question.submit(
            self.answered,
            [self.question, self.conversation, *self.controls.all],
            parts,
            **QUIET,
            trigger_mode="once",
        ).failure(lambda: self._box(False), None, self.question, **QUIET)
        self.question.stop(self.stopped, None, None, **QUIET)
        gr.on([self.clear.click, self.chat.clear], self.cleared, None, parts, **QUIET)
        sampled = [self.controls[name] for name in SAMPLED]
        sample = self.controls["do_sample"]
        assert isinstance(sample, gr.Checkbox)
        sample.change(lambda on: [gr.update(interactive=on)] * len(sampled), sample, sampled, **QUIET)

    async def answered(
        self, request: gr.Request, question: dict[str, Any] | None, conversation: list[Any], *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Yield what the page shows, from the question to the end of its answer or to an error message."""
        session, question, answer = request.session_hash or "", question or EMPTY, Answer()
        asked = [*conversation, {"role": "user", "content": [*_files(question), *_text(question)]}]
        try:
            options = self.controls.read(values)
            messages = await asyncio.to_thread(_messages, asked)
            work = answer.write(self.engine, ChatRequest(messages=messages, options=options, deadline=self.deadline))
            async with self.running.task(session, TAB, work) as task:
                yield {self.chat: _shown(asked, answer), self.question: self._box(True, EMPTY), self.view: _said("")}
                async for _ in frames(task, lambda: (answer.begun, answer.text)):
                    yield {self.chat: _shown(asked, answer)}
        except FlashJanusError as error:
            trouble = views.failure(self.controls.plain(error))
            yield {self.chat: conversation, self.question: self._box(False, question), self.view: _said(trouble)}
            return
        if not answer.text and answer.reason is None:
            trouble = views.note("Stopped before the answer began.")
            yield {self.chat: conversation, self.question: self._box(False, question), self.view: _said(trouble)}
            return
        told = [*asked, {"role": "assistant", "content": answer.text}]
        yield {
            self.chat: told,
            self.question: self._box(False),
            self.conversation: told,
            self.view: _said(_ended(answer.reason, options)),
        }

    def stopped(self, request: gr.Request) -> None:
        self.running.cancel(request.session_hash or "", TAB)

    def cleared(self, request: gr.Request) -> tuple[Any, ...]:
        self.running.cancel(request.session_hash or "", TAB)
        return [], self._box(False, EMPTY), [], _said("")

    def _box(self, answering: bool, value: dict[str, Any] | None = None) -> Any:
        change: dict[str, Any] = {} if value is None else {"value": value}
        return gr.update(submit_btn=not answering, stop_btn=answering, **change)


def _files(question: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"path": path} for path in question.get("files") or ()]


def _text(question: Mapping[str, Any]) -> list[str]:
    text = (question.get("text") or "").strip()
    return [text] if text else []


def _shown(asked: Sequence[Any], answer: Answer) -> list[Any]:
    return [*asked, {"role": "assistant", "content": answer.text or ("…" if answer.begun else "Waiting…")}]


def _said(words: str) -> Any:
    return gr.update(value=words, visible=bool(words))


def _ended(reason: str | None, options: Mapping[str, Any]) -> str:
    if reason is None:
        return views.note("Stopped.")
    if reason == "length":
        return views.note("The answer ran out of room: raise Max new tokens, or clear the conversation.")
    return ""


def _messages(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the conversation to the engine's messages. Raises InputError."""
    return [{"role": one["role"], "content": _content(one["content"])} for one in conversation]


def _content(content: str | Sequence[Any]) -> Any:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": one} if isinstance(one, str) else _image(one["path"]) for one in content]


def _image(path: str) -> dict[str, Any]:
    try:
        return {"type": "image", "image": Path(path).read_bytes()}
    except FileNotFoundError:
        raise InputError(
            "an image of this conversation no longer exists; clear the conversation and add the image again"
        ) from None
