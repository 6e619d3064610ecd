"""The area above the pictures: progress with previews, a note, or an error. All text is escaped."""

from __future__ import annotations

import base64
import time
from html import escape
from io import BytesIO

from PIL import Image

from flashjanus.errors import UnavailableError
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.ui.drawing import Drawing, enlarged

EMPTY = '<div class="fj-empty"><p>Describe an image and press <b>Draw</b>. It appears here.</p></div>'


def note(words: str) -> str:
    return f'<div class="fj-note" role="status">{escape(words)}</div>'


def failure(words: str) -> str:
    return f'<div class="fj-error" role="alert">{escape(words)}</div>'


def progress(drawing: Drawing, queued: int, size: tuple[int, int] | None) -> str:
    """Show how far a drawing is, with previews of its images."""
    seconds = time.monotonic() - drawing.began
    at = f' max="{drawing.steps}" value="{drawing.step}"' if drawing.steps else ""
    words = f'<span role="status">{escape(_stage(drawing, queued))}</span><span>{seconds:.1f} s</span>'
    line = f'<div class="fj-line">{words}</div><progress{at}></progress>'
    return f'<div class="fj-progress">{line}{_previews(drawing, size)}</div>'


def _stage(drawing: Drawing, queued: int) -> str:
    if not drawing.begun:
        return "Waiting for its turn" + (f": {waiting(queued)} in the queue" if queued else "")
    if not drawing.step:
        return "Reading the prompt"
    candidates = "best_of" in drawing.request.options
    if drawing.step < drawing.steps or candidates:
        return f"Drawing{' candidates' * candidates}: step {drawing.step} of {drawing.steps}"
    return "Decoding the image"


def waiting(queued: int) -> str:
    return f"{queued} request{'s' * (queued != 1)}"


def _previews(drawing: Drawing, size: tuple[int, int] | None) -> str:
    if drawing.partial is None:
        return ""
    shown = [_img(enlarged(one, size), number) for number, one in enumerate(drawing.partial.images, 1)]
    return f'<div class="fj-previews" style="--columns: {columns(len(shown))}">{"".join(shown)}</div>'


def _img(image: Image.Image, number: int) -> str:
    out = BytesIO()
    image.save(out, "webp", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="preview of image {number}">'


def columns(images: int) -> int:
    return 1 if images == 1 else 2 if images <= 4 else 3


def footer(engine: AsyncEngine) -> str:
    """Describe the model and engine that serve this page."""
    try:
        facts = engine.facts
    except UnavailableError as error:
        return f'<div class="fj-footer">{escape(str(error))}</div>'
    pixels = "" if facts.image_size is None else " · {1} × {0} pixels".format(*facts.image_size)
    weights = f" · {facts.quantization}" if facts.quantization else ""
    words = f"{facts.name} · {facts.device} · {facts.dtype}{weights}{pixels} · FlashJanus {facts.version}"
    return f'<div class="fj-footer">{escape(words)}</div>'


def adapters(engine: AsyncEngine) -> list[str]:
    """The adapters that requests may name; none while no model is loaded."""
    try:
        return [*engine.facts.adapters]
    except UnavailableError:
        return []


def known(engine: AsyncEngine) -> bool:
    """Whether the model is loaded."""
    try:
        return bool(engine.facts.name)
    except UnavailableError:
        return False
