"""The playground's page: what it names, who may enter, and what it leaves of the server."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from flashjanus.errors import InputError, UnavailableError
from flashjanus.serving import AsyncEngine
from flashjanus.serving.ui import blocks, mount, views
from ui_page import model, run


async def fetched(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client,
    ):
        return await client.get(path, headers=headers, follow_redirects=True)


def test_the_page_names_no_other_host_and_tells_the_browser_to_ask_none() -> None:
    async def got() -> list[httpx.Response]:
        async with AsyncEngine(model()) as engine:
            paths = "/ui", "/ui/config", "/ui/theme.css"
            return [await fetched(mount(FastAPI(), engine), path) for path in paths]

    page, config, style = run(got())
    namespace = "http://www.w3.org/2000/svg"  # which nothing fetches
    for response in (page, config, style):
        assert response.status_code == 200
        text = response.text.replace(namespace, "")
        hosts = set(re.findall(r"(?:https?:)?//([a-z0-9-]+(?:\.[a-z0-9-]+)+)", text))
        assert hosts <= {"127.0.0.1"}, response.url
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "http" not in policy
    assert "gradio_config" in page.text
    assert config.json()["analytics_enabled"] is False


def test_an_open_page_does_not_keep_the_server_from_ending() -> None:
    async def ended() -> list[str]:
        async with AsyncEngine(model()) as engine:
            app = mount(FastAPI(), engine)
            server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            address = f"http://127.0.0.1:{port}/ui/gradio_api/heartbeat/me"
            async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", address) as response:
                beats = response.aiter_text()
                told = [await anext(beats)]
                await engine.drain(10)
                server.should_exit = True
                told += [beat async for beat in beats]
                await serving
            return told

    assert run(ended())[0].startswith("data: ALIVE")


def test_only_those_who_sign_in_may_enter() -> None:
    async def got() -> list[int]:
        async with AsyncEngine(model()) as engine:
            app = mount(FastAPI(), engine, auth=lambda name, word: word == "secret")
            return [(await fetched(app, path)).status_code for path in ("/ui/config", "/ui/gradio_api/info")]

    assert run(got()) == [401, 401]


def test_a_path_that_would_hide_the_application_is_refused() -> None:
    async def mounted() -> None:
        async with AsyncEngine(model()) as engine:
            mount(FastAPI(), engine, "/")

    with pytest.raises(InputError, match="path"):
        run(mounted())


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/x.png", "HTTPS://127.0.0.1/x.png", "file:///etc/passwd"])
def test_nothing_is_fetched_for_a_client(path: str) -> None:
    async def sent() -> None:
        async with AsyncEngine(model()) as engine:
            made = blocks(engine)
            [ask] = [fn for fn in made.fns.values() if fn.name == "answered"]
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            rest = [None] * (len(ask.inputs) - 1)
            await made.preprocess_data(ask, [{"text": "x", "files": [file]}, *rest], None)

    with pytest.raises(gr.Error, match="nothing is fetched"):
        run(sent())


def test_a_model_that_is_not_there_yet_is_waited_for() -> None:
    class Starting:
        @property
        def facts(self) -> Any:
            raise UnavailableError("the model is <loading>")

    engine: Any = Starting()
    assert views.footer(engine) == '<div class="fj-footer">the model is &lt;loading&gt;</div>'
    assert not views.known(engine)
    assert views.adapters(engine) == []
    assert isinstance(blocks(engine), gr.Blocks)


def test_without_gradio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith("flashjanus.serving.ui"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=re.escape("gradio is not installed, which the playground needs: pip install")):
        importlib.import_module("flashjanus.serving.ui")


def test_a_class_of_ours_leaves_no_file_beside_its_source() -> None:
    """gradio writes a stub beside each subclass of a component."""
    import flashjanus.serving.ui

    assert not [*Path(flashjanus.serving.ui.__file__).parent.glob("*.pyi")]
