"""The playground in a headless Chromium, as somebody uses it. Debian: apt install chromium."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from flashjanus import JanusFlow
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine
from flashjanus.serving.ui import mount
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from small_adapter import write_adapter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; Debian and Ubuntu: apt install chromium"),
]
PATIENCE = 60_000
"""Milliseconds until something that has to come counts as missing: never how long it takes."""
PROMPT = "a red circle to the left of a blue square"
QUESTION = "Which is on the left, the circle or the square?"
WIDE, NARROW = dict(width=1280, height=860), dict(width=400, height=840)


@dataclass
class Served:
    model: JanusFlow
    engine: AsyncEngine
    url: str

    def busy(self) -> bool:
        stats = self.engine.stats()
        return bool(stats.queued or stats.image_rows or stats.answer_rows)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """An application with the playground, served in a thread."""
    found: list[Served] = []
    ready = threading.Event()
    model = JanusFlow.from_pretrained("shapes")

    async def serve() -> None:
        async with AsyncEngine(model, Limits(images=8)) as engine:
            server = uvicorn.Server(
                uvicorn.Config(mount(FastAPI(), engine), host="127.0.0.1", port=0, log_level="error")
            )
            task = asyncio.create_task(server.serve())
            while not server.started and not task.done():
                await asyncio.sleep(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            found.append(Served(model, engine, f"http://127.0.0.1:{port}/ui/"))
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.05)
            await engine.drain(30)
            server.should_exit = True
            await task

    ended = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    yield found[0]
    ended.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def opened(browser: Browser, served: Served, size: dict[str, int] = WIDE, scheme: Any = "light") -> Iterator[Page]:
    """A page that asks its own host alone, and meets no error of its own."""
    context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(served.url)
    expect(page.locator(".fj-footer")).to_contain_text("shapes", timeout=PATIENCE)
    yield page
    context.close()
    hosts = {urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(served.url).netloc}
    assert errors == []


def until(found: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE / 1000
    while not found():
        assert time.monotonic() < ends
        time.sleep(0.02)


def put(page: Page, name: str, value: int) -> None:
    number = page.locator(f"#fj-{name} input[type=number]")
    number.fill(str(value))
    number.blur()


def begin(page: Page, images: int = 1, steps: int = 30) -> None:
    page.fill("#fj-prompt textarea", PROMPT)
    put(page, "num_images_per_prompt", images)
    put(page, "num_inference_steps", steps)
    page.click("#fj-draw")


def sent(page: Page) -> bool:
    """Whether the question has left its box by now: as long as an answer is not all there, Enter does nothing."""
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    return page.locator("#fj-question textarea").input_value() == ""


def pictures(page: Page) -> Locator:
    return page.locator("#fj-gallery img")


def test_it_draws_with_progress_and_previews(browser: Browser, served: Served, tmp_path: Path) -> None:
    with opened(browser, served) as page:
        begin(page, images=2, steps=100)
        expect(page.locator("#fj-view")).to_contain_text(re.compile(r"step \d+ of 100"), timeout=PATIENCE)
        expect(page.locator(".fj-previews img")).to_have_count(2, timeout=PATIENCE)
        preview = page.locator(".fj-previews img").first
        assert preview.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
        expect(pictures(page)).to_have_count(2, timeout=PATIENCE)
        expect(page.locator("#fj-view")).to_contain_text("2 images in")
        expect(page.locator("#fj-draw")).to_be_visible()
        expect(page.locator("#fj-cancel")).to_be_hidden()
        seed = page.locator("#fj-seed input").input_value()
        expect(page.locator("#fj-view")).to_contain_text(f"seeds {seed} to")
        pictures(page).first.click()
        with page.expect_download() as download:
            page.locator("#fj-gallery button[aria-label=Download], #fj-gallery a[download]").first.click()
        download.value.save_as(tmp_path / "drawn.png")
        assert download.value.suggested_filename == f"a-red-circle-to-the-left-of-a-blue-square-{seed}.png"
        with Image.open(tmp_path / "drawn.png") as image:
            assert image.size == (64, 64)
            assert image.info["prompt"] == PROMPT


def test_an_adapter_is_chosen_where_there_is_one(browser: Browser, served: Served, tmp_path: Path) -> None:
    with opened(browser, served) as page:
        expect(page.locator("#fj-adapter").first).to_be_hidden()
    write_adapter(tmp_path / "ink", served.model.config.language, rank=2)
    served.model.load_adapter(tmp_path / "ink")
    try:
        with opened(browser, served) as page:
            page.locator("#fj-adapter input").first.click()
            page.get_by_role("option", name="ink").click()
            begin(page, steps=4)
            expect(pictures(page)).to_have_count(1, timeout=PATIENCE)
            pictures(page).first.click()
            with page.expect_download() as download:
                page.locator("#fj-gallery button[aria-label=Download], #fj-gallery a[download]").first.click()
            download.value.save_as(tmp_path / "drawn.png")
            with Image.open(tmp_path / "drawn.png") as image:
                assert json.loads(image.info["options"])["adapter"] == "ink"
    finally:
        served.model.unload_adapter("ink")


def test_a_drawn_image_is_asked_about(browser: Browser, served: Served) -> None:
    with opened(browser, served, NARROW, "dark") as page:
        begin(page)
        page.click("#fj-ask-about")
        expect(page.locator("#fj-question img")).to_be_visible()
        for turn, question in enumerate((QUESTION, "What color is the square?"), 1):
            page.fill("#fj-question textarea", question)
            until(lambda: sent(page))
            answer = page.locator("#fj-chat .bot.message").nth(turn - 1)
            expect(answer).to_contain_text(re.compile("circle|square|blue|red"), timeout=PATIENCE)
            until(lambda: not served.busy())
        expect(page.locator("#fj-chat .user.message img")).to_have_count(1)
        page.click("#fj-clear")
        expect(page.locator("#fj-chat .message")).to_have_count(0)
        expect(page.locator("#fj-chat")).to_contain_text("Add an image")


def test_an_answer_is_seen_while_it_is_written(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.get_by_role("tab", name="Ask").click()
        page.click("#fj-ask-more button")
        page.locator("#fj-do_sample input").check()
        put(page, "temperature", 2)
        put(page, "max_new_tokens", 400)
        page.fill("#fj-question textarea", QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#fj-chat .bot.message")).to_have_text(re.compile(r"\S"), timeout=PATIENCE)
        until(lambda: not served.busy())
        expect(page.locator("#fj-question .submit-button")).to_be_visible()


def test_cancel_ends_the_drawing(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        drawn = served.engine.stats().images
        begin(page, images=8, steps=100)
        expect(page.locator("#fj-view")).to_contain_text(re.compile(r"step \d+ of 100"), timeout=PATIENCE)
        page.click("#fj-cancel")
        expect(page.locator("#fj-view")).to_contain_text(re.compile(r"Cancelled after step \d+ of 100"))
        until(lambda: not served.busy())
        assert served.engine.stats().images == drawn
        expect(page.locator("#fj-draw")).to_be_visible()
        begin(page)  # and the next one is drawn
        expect(pictures(page)).to_have_count(1, timeout=PATIENCE)


def test_a_tab_that_is_closed_ends_its_drawing(browser: Browser, served: Served) -> None:
    drawn = served.engine.stats().images
    with opened(browser, served) as page:
        begin(page, images=8, steps=100)
        expect(page.locator("#fj-view")).to_contain_text(re.compile(r"step \d+ of 100"), timeout=PATIENCE)
        page.close()
        until(lambda: not served.busy())
        assert served.engine.stats().images == drawn


def test_a_tab_that_is_closed_while_it_waits_is_never_served(browser: Browser, served: Served) -> None:
    drawn = served.engine.stats().images
    with opened(browser, served) as first, opened(browser, served) as second:
        first.click("#fj-draw-more button")
        first.get_by_test_id("sharp-radio-label").click()
        begin(first, images=8, steps=100)
        expect(first.locator("#fj-view")).to_contain_text(re.compile(r"step \d+ of 100"), timeout=PATIENCE)
        begin(second)
        expect(second.locator("#fj-view")).to_contain_text("Waiting for its turn: 1 request", timeout=PATIENCE)
        second.close()
        expect(pictures(first)).to_have_count(8, timeout=PATIENCE)
        until(lambda: not served.busy())
        assert served.engine.stats().images == drawn + 8


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "The prompt is empty; describe the image to draw."), ("a red circle " * 400, "The prompt is too long")],
    ids=["empty", "long"],
)
def test_an_error_is_said(browser: Browser, served: Served, prompt: str, said: str) -> None:
    with opened(browser, served) as page:
        page.fill("#fj-prompt textarea", prompt)
        page.click("#fj-draw")
        expect(page.get_by_role("alert")).to_contain_text(said, timeout=PATIENCE)
        expect(page.locator("#fj-draw")).to_be_visible()
        assert "Traceback" not in page.content()


def test_a_preset_fills_its_fields(browser: Browser, served: Served) -> None:
    with opened(browser, served) as page:
        page.locator("#fj-preset").get_by_text("fast").click()
        expect(page.locator("#fj-num_inference_steps input[type=number]")).to_have_value("16", timeout=PATIENCE)
        expect(page.locator("#fj-preset")).to_contain_text("16 steps of ab2")
        page.click("#fj-draw-more button")
        expect(page.locator("#fj-step_cache :is(input, textarea)")).to_have_value(re.compile("^0,0.16,"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_cut_off(browser: Browser, served: Served, size: dict[str, int], scheme: str) -> None:
    with opened(browser, served, size, scheme) as page:
        for tab in ("Draw", "Ask"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", shown)[0])
        assert (red < 128) == (scheme == "dark")
