"""Adapters by the field `adapter`, and as models of their own: which loaded adapter draws and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import pytest
from flashjanus import JanusFlow
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings, create_app
from serving_app import SECONDS, image_of
from small_adapter import write_adapter
from untrained_model import write_untrained_model

IMAGES, CHAT, RESPONSES, MODELS = "/v1/images/generations", "/v1/chat/completions", "/v1/responses", "/v1/models"
QUICK = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 5}
ASK = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 6, "temperature": 0}
RESPOND = {"input": "What?", "max_output_tokens": 6, "temperature": 0}
TOOL = {"type": "image_generation", "num_inference_steps": 2}
DRAW = {"input": QUICK["prompt"], "seed": 5, "tools": [TOOL]}
Work: TypeAlias = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JanusFlow:
    """An untrained model with the adapters ink and gold, and one that has a name of the model's own."""
    folder = tmp_path_factory.mktemp("adapted")
    write_untrained_model(folder / "model", layers=2)
    model = JanusFlow.from_pretrained(folder / "model", dtype="float32")
    for seed, name in enumerate(("ink", "gold")):
        write_adapter(folder / name, model.config.language, rank=2, seed=seed)
        model.load_adapter(folder / name)
    model.load_adapter(folder / "ink", "janus")
    return model


def served(model: JanusFlow, work: Work) -> Any:
    async def within() -> Any:
        async with AsyncEngine(model) as engine:
            transport = httpx.ASGITransport(create_app(engine, Settings(names=("janus",))))
            async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SECONDS) as web:
                return await work(web)

    return asyncio.run(within())


def posted(model: JanusFlow, *bodies: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    async def work(web: httpx.AsyncClient) -> list[httpx.Response]:
        return list(await asyncio.gather(*(web.post(path, json=body) for path, body in bodies)))

    replies: list[httpx.Response] = served(model, work)
    return replies


def drawn(model: JanusFlow, adapter: str | None) -> np.ndarray[Any, Any]:
    image = model.generate_image(QUICK["prompt"], num_inference_steps=2, seed=5, adapter=adapter).images[0]  # type: ignore[arg-type]
    return np.asarray(image, np.int16)


def same(image: str, expected: np.ndarray[Any, Any]) -> bool:
    """Whether an image of a batch is the one that was drawn alone, to a level."""
    return bool(abs(np.asarray(image_of(image), np.int16) - expected).max() <= 1)


def test_requests_name_an_adapter(model: JanusFlow) -> None:
    replies = posted(
        model,
        (IMAGES, QUICK),
        (IMAGES, {**QUICK, "adapter": "ink"}),
        (IMAGES, {**QUICK, "model": "ink"}),
        (IMAGES, {**QUICK, "model": "ink", "adapter": "ink"}),
        (IMAGES, {**QUICK, "model": "janus", "adapter": "gold"}),
        (IMAGES, {**QUICK, "model": "janus"}),
    )
    plain, ink, gold = (drawn(model, name) for name in (None, "ink", "gold"))
    assert not np.array_equal(plain, ink)
    assert not np.array_equal(gold, ink)
    for reply, expected in zip(replies, (plain, ink, ink, ink, gold, plain), strict=True):
        assert reply.status_code == 200, reply.text
        assert same(reply.json()["data"][0]["b64_json"], expected)


def test_conversations_name_an_adapter(model: JanusFlow) -> None:
    replies = posted(
        model,
        (CHAT, ASK),
        (CHAT, {**ASK, "adapter": "ink"}),
        (CHAT, {**ASK, "model": "ink"}),
        (RESPONSES, {**RESPOND, "model": "ink"}),
        (RESPONSES, RESPOND),
    )
    plain, ink = (model.chat(ASK["messages"], max_new_tokens=6, adapter=name) for name in (None, "ink"))  # type: ignore[arg-type]
    assert plain != ink
    said = [reply.json()["choices"][0]["message"]["content"] for reply in replies[:3]]
    said += [reply.json()["output"][0]["content"][0]["text"] for reply in replies[3:]]
    assert said == [plain, ink, ink, ink, plain]
    assert [reply.json()["model"] for reply in replies] == ["janus", "janus", "ink", "ink", "janus"]


def test_drawings_of_the_responses_api(model: JanusFlow) -> None:
    """The tool says which adapter draws, and the response if the tool names neither an adapter nor a model."""
    replies = posted(
        model,
        (RESPONSES, {**DRAW, "model": "ink"}),
        (RESPONSES, {**DRAW, "adapter": "ink"}),
        (RESPONSES, {**DRAW, "model": "gold", "tools": [{**TOOL, "model": "ink"}]}),
        (RESPONSES, {**DRAW, "model": "gold", "tools": [{**TOOL, "adapter": "ink"}]}),
        (RESPONSES, {**DRAW, "model": "ink", "tools": [{**TOOL, "model": "janus"}]}),
    )
    plain, ink = drawn(model, None), drawn(model, "ink")
    for reply, expected in zip(replies, (ink, ink, ink, ink, plain), strict=True):
        assert reply.status_code == 200, reply.text
        assert same(reply.json()["output"][0]["result"], expected)


def test_what_is_no_adapter_is_refused_by_its_field(model: JanusFlow) -> None:
    unknown = "adapter: expected the name of a loaded adapter ('ink', 'gold', 'janus'), got 'other'"
    two = "adapter: expected 'ink' with this model, got 'gold'; give one of the two"
    of_model = f"model: expected 'janus' or {model.name!r} or 'ink' or 'gold', got 'other'"
    tool = {**TOOL, "adapter": "other"}
    bad: list[tuple[str, dict[str, Any], int, str]] = [
        (IMAGES, {**QUICK, "adapter": "other"}, 400, unknown),
        (CHAT, {**ASK, "adapter": 3}, 400, "adapter: expected the name of a loaded adapter, or a list of names, got 3"),
        (IMAGES, {**QUICK, "model": "other"}, 404, of_model),
        (CHAT, {**ASK, "model": "other"}, 404, of_model),
        (IMAGES, {**QUICK, "model": "ink", "adapter": "gold"}, 400, two),
        (CHAT, {**ASK, "model": "ink", "adapter": "gold"}, 400, two),
        (RESPONSES, {**RESPOND, "model": "ink", "adapter": "gold"}, 400, two),
        (RESPONSES, {**DRAW, "adapter": "other"}, 400, unknown),
        (RESPONSES, {**DRAW, "tools": [tool]}, 400, f"tools[0].{unknown}"),
        (RESPONSES, {**DRAW, "tools": [{**tool, "model": "other"}]}, 404, f"tools[0].{of_model}"),
    ]
    for reply, (_, body, status, said) in zip(posted(model, *(one[:2] for one in bad)), bad, strict=True):
        error = reply.json()["error"]
        assert (reply.status_code, error["message"], error["param"]) == (status, said, said.partition(":")[0]), body


def test_models_lists_adapters_while_they_are_loaded(model: JanusFlow, tmp_path: Path) -> None:
    """An adapter that has a name of the model's own is not listed: that name asks for the model."""
    write_adapter(tmp_path / "late", model.config.language, rank=2)

    async def work(web: httpx.AsyncClient) -> tuple[Any, ...]:
        before = (await web.get(MODELS)).json()["data"]
        model.load_adapter(tmp_path / "late", "who/late")
        try:
            late = (await web.get(f"{MODELS}/who/late")).json()
        finally:
            model.unload_adapter("who/late")
        after = await web.get(f"{MODELS}/who/late"), await web.post(IMAGES, json={**QUICK, "model": "who/late"})
        return before, late, *after

    before, late, *gone = served(model, work)
    listed = [(one["id"], one["root"], one["parent"]) for one in before]
    ink, gold = (model.adapters[name].source for name in ("ink", "gold"))
    name = model.name
    assert listed == [("janus", name, None), (name, name, None), ("ink", ink, "janus"), ("gold", gold, "janus")]
    assert (late["id"], late["root"], late["parent"]) == ("who/late", str(tmp_path / "late"), "janus")
    assert late.keys() == before[0].keys()
    assert [(one.status_code, one.json()["error"]["code"]) for one in gone] == [(404, "model_not_found")] * 2


def test_an_adapter_in_the_weights_is_no_model_of_its_own(model: JanusFlow) -> None:
    async def work(web: httpx.AsyncClient) -> Any:
        return [one["id"] for one in (await web.get(MODELS)).json()["data"]]

    model.merge_adapter("ink")
    try:
        assert served(model, work) == ["janus", model.name, "gold"]
    finally:
        model.unmerge_adapter()
