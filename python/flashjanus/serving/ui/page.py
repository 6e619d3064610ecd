"""The page: its two tabs, and how an application serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from fastapi import FastAPI

from flashjanus.errors import InputError
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.ui import controls, views
from flashjanus.serving.ui.ask_tab import AskTab
from flashjanus.serving.ui.draw_tab import QUIET, DrawTab
from flashjanus.serving.ui.local import LocalBlocks
from flashjanus.serving.ui.running import Running
from flashjanus.serving.ui.sealed import Sealed
from flashjanus.serving.ui.style import CSS, HEAD, theme

MAX_UPLOAD = "20mb"
CACHE = (600, 24 * 3600)
"""Seconds between clean-ups of uploads and pictures, and the age at which they are deleted."""
WAIT = 2.0
"""Seconds between checks whether the model is loaded."""


def mount(
    app: FastAPI,
    engine: AsyncEngine,
    path: str = "/ui",
    *,
    auth: Callable[[str, str], bool] | None = None,
    most: Mapping[str, float] | None = None,
    deadline: float | None = None,
) -> FastAPI:
    """Serve the playground of `engine` below `path` of an application, and return the application, whose lifespan has
    to run.

    auth: returns whether a user and a password may enter; None admits everybody. most, deadline: as in `blocks`. An
    open page holds a connection, which ends once the engine has been drained or closed.
    """
    if not path.startswith("/") or path.rstrip("/") == "":
        raise InputError(f"path: expected one below the application's own, such as /ui, got {path!r}")
    path, running = path.rstrip("/"), Running()
    gr.mount_gradio_app(
        app,
        _page(engine, running, most or {}, deadline),
        path=path,
        auth=auth,
        auth_message="Sign in to draw and ask." if auth else None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
    [mounted] = [route for route in app.routes if getattr(route, "path", None) == path]
    mounted.app = Sealed(mounted.app, HEAD, lambda: not engine.ready and running.idle)  # type: ignore[attr-defined]
    return app


def blocks(engine: AsyncEngine, *, most: Mapping[str, float] | None = None, deadline: float | None = None) -> gr.Blocks:
    """The playground as gradio Blocks, whose handlers run in the event loop that serves them.

    most: the highest value of an option on this page, by name. deadline: the seconds that a request may take.
    """
    return _page(engine, Running(), most or {}, deadline)


def _page(engine: AsyncEngine, running: Running, most: Mapping[str, float], deadline: float | None) -> gr.Blocks:
    with LocalBlocks(title="FlashJanus", analytics_enabled=False, delete_cache=CACHE, fill_width=False) as page:
        gr.HTML('<h1 class="fj-title">FlashJanus</h1>', elem_classes="fj-head")
        with gr.Tabs(selected="draw") as tabs:
            with gr.Tab("Draw", id="draw"):
                draw = DrawTab(engine, running, most, deadline)
            with gr.Tab("Ask", id="ask"):
                ask = AskTab(engine, running, most, deadline)
        footer = gr.HTML("")
        timer = gr.Timer(WAIT, active=False)

        def facts() -> tuple[Any, ...]:
            names = controls.adapters(views.adapters(engine))
            return views.footer(engine), draw.samples(), names, names, gr.Timer(active=not views.known(engine))

        def show(pictures: list[tuple[str, str]], chosen: int) -> tuple[Any, ...]:
            """Send a picture to the other tab."""
            return gr.Tabs(selected="ask"), {"text": "", "files": [pictures[chosen][0]]}

        def left(request: gr.Request) -> None:
            running.leave(request.session_hash or "")

        draw.wire()
        ask.wire()
        draw.ask.click(show, [draw.pictures, draw.chosen], [tabs, ask.question], **QUIET)
        chosen = [tab.controls["adapter"] for tab in (draw, ask)]
        gr.on([page.load, timer.tick], facts, None, [footer, draw.examples, *chosen, timer], **QUIET)
        page.unload(left)
    page.queue(default_concurrency_limit=None, api_open=False)
    blocks: gr.Blocks = page
    return blocks
