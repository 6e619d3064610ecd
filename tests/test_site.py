"""The website: `make docs` builds it without a warning, and a browser shows it without the network, narrow and wide."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDED = ("mkdocs", "material", "mkdocstrings")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason='pip install "flashjanus[docs]"'),
]
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_every_page_is_built(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    assert 'id="flashjanus.JanusFlow.generate_image"' in (site / "python.html").read_text(encoding="utf-8"), (
        "out of the docstrings"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; Debian and Ubuntu: apt install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_page(site: Path, address: str, width: int) -> None:
    """No page is wider than the window, no picture is missing, no script fails, and nothing comes from elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("response", lambda got: faults.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        for file in sorted(site.rglob("*.html")):
            page.goto(address + str(file.relative_to(site)))
            assert page.evaluate(OVERFLOW) == 0, file.name
            page.evaluate("() => document.images.length && [...document.images].map(image => image.loading = 'eager')")
            page.wait_for_load_state("networkidle")
            assert page.evaluate(BROKEN) == [], file.name
        browser.close()
    assert faults == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
