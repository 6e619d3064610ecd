"""The playground without a browser: its handlers, its controls."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from flashjanus import JanusFlow
from flashjanus.sampling import presets
from flashjanus.sampling.fields import options_of
from flashjanus.sampling.options import PRESETS, ImageOptions, TokenOptions
from flashjanus.serving import AsyncEngine
from flashjanus.serving.ui import blocks, controls
from flashjanus.serving.ui.ask_tab import AskTab
from flashjanus.serving.ui.draw_tab import DrawTab
from PIL import Image
from small_adapter import write_adapter
from ui_page import ME, SOMEBODY, Page, model, page, run, seen, values


def test_a_drawing_shows_its_steps_its_previews_and_the_pictures_of_the_model() -> None:
    async def drawn() -> tuple[DrawTab, list[Any]]:
        async with page() as one:
            changes = one.draw("a red circle", seed=5, num_images_per_prompt=2, num_inference_steps=100)
            return one.drawing, await seen(changes)

    tab, [*underway, last] = run(drawn())
    words = [change[tab.view] for change in underway]
    assert "Waiting for its turn" in words[0]
    assert any(re.search(r"step \d+ of 100", one) for one in words)
    assert any(one.count("data:image/webp;base64,") == 2 for one in words)
    assert all(change[tab.cancel]["visible"] and not change[tab.draw]["visible"] for change in underway)
    assert last[tab.draw]["visible"]
    assert not last[tab.cancel]["visible"]
    assert "2 images" in last[tab.view]
    assert "seeds 5 to 6" in last[tab.view]
    assert [caption for _, caption in last[tab.pictures]] == ["seed 5", "seed 6"]
    assert [Path(path).name for path, _ in last[tab.pictures]] == ["a-red-circle-5.png", "a-red-circle-6.png"]
    alone = model().generate_image("a red circle", num_images_per_prompt=2, num_inference_steps=100, seed=5)
    for (path, _), image, seed in zip(last[tab.pictures], alone.images, (5, 6), strict=True):
        with Image.open(path) as saved:
            assert saved.size == (64, 64)
            worst = max(high for _, high in _difference(saved, image).getextrema())  # type: ignore[misc]
            assert worst <= 1
            assert saved.info["prompt"] == "a red circle"
            assert json.loads(saved.info["options"])["seed"] == seed


def _difference(one: Image.Image, other: Image.Image) -> Image.Image:
    from PIL import ImageChops

    return ImageChops.difference(one.convert("RGB"), other.convert("RGB"))


def test_a_new_seed_is_shown_and_draws_the_same_picture_again() -> None:
    async def drawn() -> Any:
        async with page() as one:
            tab = one.drawing
            first = (await seen(one.draw("a red circle", new_seed=True, seed=5, num_inference_steps=3)))[-1]
            seed = first[tab.controls["seed"]]
            again = (await seen(one.draw("a red circle", seed=seed, num_inference_steps=3)))[-1]
            other = (await seen(one.draw("a red circle", new_seed=True, num_inference_steps=3)))[-1]
            return seed, *(Path(change[tab.pictures][0][0]).read_bytes() for change in (first, again, other))

    seed, first, again, other = run(drawn())
    assert seed.isdecimal()
    assert first == again != other


def test_the_adapter_that_is_chosen_draws_and_answers(tmp_path: Path) -> None:
    """It is a choice only where the engine has adapters, and stays with the picture as one of its options."""
    adapted = JanusFlow.from_pretrained("shapes", dtype="float32")
    given = dict(seed=5, num_inference_steps=2)

    async def done() -> tuple[Any, ...]:
        async with AsyncEngine(adapted) as engine:
            [load] = [one for one in blocks(engine).fns.values() if one.name == "facts"]
            before = load.fn()
            write_adapter(tmp_path / "ink", adapted.config.language, rank=2)
            adapted.load_adapter(tmp_path / "ink")
            one = Page(engine)
            [*_, drawn] = await seen(one.draw("a red circle", adapter="ink", **given))
            [*_, told] = await seen(one.ask("What?", adapter="ink", max_new_tokens=6))
            return before, load.fn(), drawn[one.drawing.pictures][0][0], told[one.asking.conversation][-1]

    before, after, path, answer = run(done())
    for shown, choices in ((before, [("none", "")]), (after, [("none", ""), ("ink", "ink")])):
        chooser = {"choices": choices, "visible": len(choices) > 1, "__type__": "update"}
        assert [change for change in shown if isinstance(change, dict)] == [chooser] * 2
    alone = adapted.generate_image("a red circle", adapter="ink", **given).images[0]  # type: ignore[arg-type]
    with Image.open(path) as saved:
        assert max(high for _, high in _difference(saved, alone).getextrema()) <= 1  # type: ignore[misc]
        assert json.loads(saved.info["options"])["adapter"] == "ink"
    question = [{"role": "user", "content": "What?"}]
    assert answer["content"] == adapted.chat(question, max_new_tokens=6, adapter="ink")


def test_the_best_candidates_come_with_their_scores() -> None:
    async def drawn() -> Any:
        async with page() as one:
            last = (await seen(one.draw("a red circle", best_of="3", num_inference_steps=3)))[-1]
            return last[one.drawing.pictures]

    [(_, caption)] = run(drawn())
    assert re.fullmatch(r"seed \d+, score [01]\.\d\d", caption)


def test_cancel_ends_a_drawing_of_this_session_alone() -> None:
    async def drawn() -> tuple[DrawTab, Any, int]:
        async with page() as one:
            tab, last = one.drawing, None
            async for change in one.draw(
                "a red circle", num_inference_steps=100, num_images_per_prompt=8, before=["x"]
            ):
                last = change
                if re.search(r"step \d", change[tab.view]):
                    tab.cancelled(SOMEBODY)
                    await asyncio.sleep(0)
                    assert one.engine.stats().images == 0
                    tab.cancelled(ME)
            await one.settled()
            return tab, last, one.engine.stats().images

    tab, last, images = run(drawn())
    assert images == 0
    assert re.search(r"Cancelled after step \d+ of 100", last[tab.view])
    assert last[tab.draw]["visible"]
    assert last[tab.gallery]["visible"]  # the pictures from before
    assert tab.pictures not in last


@pytest.mark.parametrize("how", ["left", "closed", "task"])
def test_a_page_that_is_closed_ends_its_requests(how: str) -> None:
    """By gradio's unload; as gradio closes a handler that nobody listens to; and where the handler's task is ended."""

    async def drawn() -> int:
        async with page() as one:
            drawing = one.draw("a red circle", num_inference_steps=100, num_images_per_prompt=8)
            if how == "task":
                task = asyncio.create_task(seen(drawing))
                while not one.engine.stats().image_rows:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.wait({task})
            else:
                async with aclosing(drawing):
                    async for change in drawing:
                        if "step" in change.get(one.drawing.view, ""):
                            if how == "closed":
                                break
                            one.running.leave("somebody")
                            one.running.leave("me")
            await one.settled()
            return one.engine.stats().images

    assert run(drawn()) == 0


@pytest.mark.parametrize(
    ("prompt", "given", "said"),
    [
        (" ", {}, "The prompt is empty; describe the image to draw."),
        ("a red circle " * 400, {}, "The prompt is too long"),
        ("x", dict(step_cache="0.5,<b>"), "Step cache: expected"),
        ("x", dict(seed="-1"), "Seed: expected an integer from 0"),
        ("x", dict(timestep_shift=0), "Timestep shift: expected a finite number from 0.01 to 100"),
        ("x", dict(seed="1.5"), "Seed: expected an integer, got &#x27;1.5&#x27;."),
        ("x", dict(best_of="11"), "Best of: expected an integer from 1 to 10, got 11."),
    ],
)
def test_what_cannot_be_drawn_is_said_in_plain_words(prompt: str, given: dict[str, Any], said: str) -> None:
    async def drawn() -> tuple[DrawTab, Any]:
        async with page(best_of=10) as one:
            return one.drawing, (await seen(one.draw(prompt, **given)))[-1]

    tab, last = run(drawn())
    assert said in last[tab.view]
    assert 'role="alert"' in last[tab.view]
    assert "<b>" not in last[tab.view]
    assert last[tab.draw]["visible"]
    assert tab.pictures not in last


QUESTION = "Which is on the left, the circle or the square?"


def test_an_answer_streams_and_the_conversation_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "shown.png")
    model().generate_image("a red circle to the left of a blue square", seed=7).images[0].save(path)

    async def asked() -> tuple[AskTab, list[Any], list[Any]]:
        async with page() as one:
            first = await seen(one.ask(QUESTION, path, max_new_tokens=8))
            told = first[-1][one.asking.conversation]
            return one.asking, first, await seen(one.ask("How many are there?", conversation=told, max_new_tokens=8))

    def part(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    tab, first, second = run(asked())
    question = {"role": "user", "content": [{"type": "image", "image": path}, part(QUESTION)]}
    answer = model().chat([question], max_new_tokens=8)
    assert first[-1][tab.chat][-1] == {"role": "assistant", "content": answer}
    turns = [
        question,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [part("How many are there?")]},
    ]
    assert second[-1][tab.chat][-1]["content"] == model().chat(turns, max_new_tokens=8)
    assert first[0][tab.question]["stop_btn"]
    assert first[-1][tab.question]["submit_btn"]
    assert len(second[-1][tab.conversation]) == 4


def test_an_answer_that_ends_for_want_of_room_says_so() -> None:
    async def asked() -> str:
        async with page() as one:
            last = (await seen(one.ask(QUESTION, max_new_tokens=1)))[-1]
            said: str = last[one.asking.view]["value"]
            return said

    assert "raise Max new tokens" in run(asked())


@pytest.mark.parametrize("text", ["", "hello " * 600])
def test_a_question_that_cannot_be_answered_comes_back(text: str) -> None:
    async def asked() -> tuple[AskTab, Any]:
        async with page() as one:
            return one.asking, (await seen(one.ask(text, conversation=["before"] * 0)))[-1]

    tab, last = run(asked())
    assert 'role="alert"' in last[tab.view]["value"]
    assert last[tab.question]["value"] == {"text": text, "files": []}
    assert last[tab.chat] == []
    assert tab.conversation not in last


def test_an_image_that_is_gone_is_asked_for_again(tmp_path: Path) -> None:
    async def asked() -> str:
        async with page() as one:
            last = (await seen(one.ask(QUESTION, str(tmp_path / "gone.png"))))[-1]
            said: str = last[one.asking.view]["value"]
            return said

    assert "no longer exists" in run(asked())


def test_stop_keeps_what_was_answered() -> None:
    async def asked() -> tuple[AskTab, Any]:
        async with page() as one:
            tab, last = one.asking, None
            async for change in one.ask(QUESTION, max_new_tokens=400, do_sample=True, temperature=2.0, top_p=1.0):
                last = change
                told = change[tab.chat][-1]["content"]
                if tab.conversation not in change and told not in ("…", "Waiting…"):
                    tab.stopped(ME)
            await one.settled()
            return tab, last

    tab, last = run(asked())
    assert tab.question in last
    assert last[tab.question]["submit_btn"]


@pytest.mark.parametrize(("kind", "tab"), [(ImageOptions, "drawing"), (TokenOptions, "asking")])
def test_controls_say_what_the_options_say(kind: Any, tab: str) -> None:
    async def made() -> controls.Controls:
        async with page(num_inference_steps=40, num_images_per_prompt=4) as one:
            found: controls.Controls = getattr(one, tab).controls
            return found

    found = run(made())
    most = dict(num_inference_steps=40, num_images_per_prompt=4)
    for name, one in found.by_name.items():
        option: Any = options_of(kind)[name]
        held = option.usual if option.default is None else option.default
        text = "" if held is None else str(held)
        assert one.value == (text if isinstance(one, gr.Textbox | gr.Dropdown) else held), name  # type: ignore[attr-defined]
        if isinstance(one, gr.Slider):
            assert one.minimum == option.low
            assert one.maximum <= most.get(name, option.high)
        if name not in ("preset", "adapter"):
            assert option.meaning.lower() in one.info.lower()  # type: ignore[attr-defined]
    read = found.read(values(found, {}))
    kept = {name: kind.__dataclass_fields__[name].default for name in read}
    assert {name: one for name, one in read.items() if one != kept[name]} == {
        name: options_of(kind)[name].usual for name in read if kept[name] is None
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_the_controls_with_what_it_stands_for(preset: str) -> None:
    async def read() -> dict[str, Any]:
        async with page() as one:
            tab = one.drawing
            about, *given = tab.preset(preset)
            assert str(PRESETS[preset].get("num_inference_steps", 30)) in about["info"]
            names = [name for name in controls.PRESET_NAMES if name in tab.controls.by_name]
            filled = dict(zip(names, given, strict=True))
            return tab.controls.read(values(tab.controls, {"preset": preset, **filled}))

    given = {name: value for name, value in run(read()).items() if name not in ("num_images_per_prompt", "seed")}
    assert presets.sampler(**given) == presets.sampler(preset=preset)
