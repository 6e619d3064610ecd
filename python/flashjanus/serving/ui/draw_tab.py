"""The tab that draws images."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr

from flashjanus.errors import FlashJanusError, UnavailableError
from flashjanus.sampling.options import PRESETS
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.messages import ImageRequest, Images
from flashjanus.serving.ui import controls, views
from flashjanus.serving.ui.drawing import PREVIEWS, Drawing, save
from flashjanus.serving.ui.running import Running, frames

NEW_SEEDS = 10**6
"""The number of seeds from which one is drawn if none is given; a caption has room for their few digits."""
SHAPES = (
    "a red circle to the left of a blue square",
    "three green triangles on a black background",
    "a yellow square above a purple circle",
    "a cyan triangle in the top right",
)
SCENES = (
    "a lighthouse on a cliff at dusk, oil painting",
    "a bowl of ripe apricots on a wooden table, soft morning light",
    "a red fox asleep in the snow",
    "an old street in the rain, neon signs, wide shot",
)
TAB = "draw"


class DrawTab:
    """The components of the tab; `wire` connects them."""

    def __init__(
        self, engine: AsyncEngine, running: Running, most: Mapping[str, float], deadline: float | None
    ) -> None:
        self.engine, self.running, self.deadline = engine, running, deadline
        self.controls = controls.images(most)
        with gr.Row(elem_classes="fj-ask-line", equal_height=True):
            self.prompt = gr.Textbox(
                label="Prompt",
                show_label=False,
                placeholder="Describe an image",
                lines=1,
                max_lines=4,
                scale=6,
                min_width=240,
                autofocus=True,
                container=False,
                elem_id="fj-prompt",
            )
            self.draw = gr.Button("Draw", variant="primary", scale=1, min_width=110, elem_id="fj-draw")
            self.cancel = gr.Button(
                "Cancel", variant="stop", scale=1, min_width=110, visible=False, elem_id="fj-cancel"
            )
        self.examples = gr.Dataset(
            components=[self.prompt], samples=[[one] for one in SCENES], label="Examples", elem_id="fj-examples"
        )
        with gr.Row(elem_classes="fj-columns"):
            with gr.Column(scale=2, min_width=300):
                self._settings()
            with gr.Column(scale=3, min_width=300, elem_classes="fj-stage"):
                self.view = gr.HTML(views.EMPTY, elem_id="fj-view")
                self.gallery = gr.Gallery(
                    show_label=False,
                    format="png",
                    visible=False,
                    interactive=False,
                    object_fit="contain",
                    height="auto",
                    buttons=["download", "fullscreen"],
                    elem_id="fj-gallery",
                )
                self.ask = gr.Button("Ask about this image", visible=False, elem_id="fj-ask-about")
        self.pictures = gr.State([])
        self.chosen = gr.State(0)

    def _settings(self) -> None:
        self.controls.add("num_images_per_prompt", "adapter", "preset", "num_inference_steps", "guidance_scale")
        preset = self.controls["preset"]
        assert isinstance(preset, gr.Radio)
        preset.info = controls.preset_meaning(next(iter(PRESETS)))
        with gr.Group():
            self.controls.add("seed")
            self.new_seed = gr.Checkbox(True, label="New seed each time", elem_id="fj-new-seed")
        with gr.Accordion("More", open=False, elem_id="fj-draw-more"):
            self.controls.add("solver", "timestep_shift", "step_cache", "best_of")
            self.previews = gr.Radio(
                [("quick", "quick"), ("sharp", "sharp"), ("off", "off")],
                value="quick",
                label="Previews",
                info="Quick ones are blurred and cost nothing; sharp ones take the time of an image each.",
                elem_id="fj-previews",
            )

    def wire(self) -> None:
        seed, changing = self.controls["seed"], [self.draw, self.cancel, self.ask, self.pictures, self.chosen]
        started = gr.on(
            [self.draw.click, self.prompt.submit],
            self.drawn,
            [self.pictures, self.prompt, self.new_seed, self.previews, *self.controls.all],
            [self.view, self.gallery, seed, *changing],
            **QUIET,
            trigger_mode="once",
        )
        started.failure(lambda: self._buttons(False), None, [self.draw, self.cancel], **QUIET)
        self.cancel.click(self.cancelled, None, None, **QUIET)
        self.gallery.select(self.selected, self.pictures, [self.chosen, self.ask], **QUIET)
        self.examples.click(lambda sample: sample[0], self.examples, self.prompt, **QUIET)
        given = [self.controls[name] for name in controls.PRESET_NAMES if name in self.controls.by_name]
        preset = self.controls["preset"]
        assert isinstance(preset, gr.Radio)
        preset.input(self.preset, preset, [preset, *given], **QUIET)

    async def drawn(
        self, request: gr.Request, before: list[Any], prompt: str, new_seed: bool, previews: str, *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """Yield what the page shows, from the press of the button to the pictures or to an error message; after an
        error or a cancellation, the previous pictures come back."""
        try:
            drawing = Drawing(self._request(prompt, new_seed, previews, values))
            size = self.engine.facts.image_size
            work = drawing.draw(self.engine)
            async with self.running.task(request.session_hash or "", TAB, work) as task:
                async for _ in frames(task, lambda: drawing.seen):
                    shown = views.progress(drawing, self.engine.stats().queued, size)
                    yield {**self._buttons(True), **self._pictures(False), self.view: shown}
        except FlashJanusError as error:
            said = views.failure(self.controls.plain(error))
            yield {**self._buttons(False), **self._pictures(bool(before)), self.view: said}
            return
        if drawing.result is None:
            said = views.note(f"Cancelled{_after(drawing)}.")
            yield {**self._buttons(False), **self._pictures(bool(before)), self.view: said}
            return
        yield await self._done(drawing, drawing.result)

    def _pictures(self, visible: bool) -> dict[Any, Any]:
        return {one: gr.update(visible=visible) for one in (self.gallery, self.ask)}

    async def _done(self, drawing: Drawing, result: Images) -> dict[Any, Any]:
        request = drawing.request
        pictures = await asyncio.to_thread(save, result, request.prompt, request.options, self.gallery.GRADIO_CACHE)
        count = len(pictures)
        words = f"{count} images" if count > 1 else "Drawn"
        seed = {} if result.seeds is None else {self.controls["seed"]: str(request.options["seed"])}
        return {
            **self._buttons(False),
            **seed,
            self.view: views.note(f"{words} in {drawing.seconds:.1f} s · {seeds_of(result)}"),
            self.gallery: gr.update(value=pictures, visible=True, columns=views.columns(count), selected_index=None),
            self.ask: gr.update(visible=True, value=_ask_words(0, count)),
            self.pictures: pictures,
            self.chosen: 0,
        }

    def _request(self, prompt: str, new_seed: bool, previews: str, values: tuple[Any, ...]) -> ImageRequest:
        """Raises InputError."""
        options = self.controls.read(values)
        if new_seed or "seed" not in options:
            options["seed"] = secrets.randbelow(NEW_SEEDS)
        shown = 0 if previews == "off" or "best_of" in options else PREVIEWS
        return ImageRequest(
            prompt=prompt or "",
            options=options,
            previews=shown,
            full_previews=previews == "sharp",
            deadline=self.deadline,
        )

    def cancelled(self, request: gr.Request) -> None:
        self.running.cancel(request.session_hash or "", TAB)

    def selected(self, pictures: list[Any], event: gr.SelectData) -> tuple[int, Any]:
        return event.index, gr.update(value=_ask_words(event.index, len(pictures)))

    def preset(self, name: str) -> list[Any]:
        values = controls.preset_values(name)
        given = [values[one] for one in controls.PRESET_NAMES if one in self.controls.by_name]
        return [gr.update(info=controls.preset_meaning(name)), *given]

    def samples(self) -> Any:
        """Example prompts for the served model."""
        try:
            shapes = self.engine.facts.name == "shapes"
        except UnavailableError:
            return gr.skip()
        return gr.Dataset(samples=[[one] for one in (SHAPES if shapes else SCENES)])

    def _buttons(self, drawing: bool) -> dict[Any, Any]:
        return {self.draw: gr.update(visible=not drawing), self.cancel: gr.update(visible=drawing)}


QUIET: dict[str, Any] = dict(show_progress="hidden", api_visibility="private", concurrency_limit=None)
"""Settings of every event: the page shows its own progress, and programs have the API."""


def seeds_of(result: Images) -> str:
    """Describe the seeds in words."""
    seeds = sorted(result.seeds or ())
    if len(seeds) < 2:
        return f"seed {seeds[0]}" if seeds else "no seed"
    joined = seeds == [*range(seeds[0], seeds[-1] + 1)]
    return f"seeds {seeds[0]} to {seeds[-1]}" if joined else f"seeds {', '.join(map(str, seeds))}"


def _after(drawing: Drawing) -> str:
    return f" after step {drawing.step} of {drawing.steps}" if drawing.step else " before it began"


def _ask_words(index: int, count: int) -> str:
    return "Ask about this image" if count == 1 else f"Ask about image {index + 1} of {count}"
