"""A field that is not known, or cannot be honored, is refused by its name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving_clients import CHAT, IMAGES, SHORT

PART: dict[str, Any] = {"type": "text", "text": "Why?"}
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": [PART]}], "max_tokens": 1}


def with_part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{**PART, **fields}]}]}


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        # misspelled, or of another server
        (IMAGES, {"num_inference_step": 3}, "num_inference_step"),
        (IMAGES, {"guidance": 3}, "guidance"),
        (IMAGES, {"negative_prompt": "blurry"}, "negative_prompt"),
        (IMAGES, {"extra_body": {"seed": 3}}, "extra_body"),
        (CHAT, {"max_new_tokens": 3}, "max_new_tokens"),
        (CHAT, {"ignore_eos": True}, "ignore_eos"),
        (CHAT, {"min_p": 0.1}, "min_p"),
        (CHAT, {"stream": True, "stream_options": {"every": 3}}, "stream_options.every"),
        (CHAT, {"messages": [{"role": "user", "content": "Why?", "weight": 2}]}, "messages[0].weight"),
        (CHAT, with_part(cache_control={}), "messages[0].content[0].cache_control"),
        # of the interface, with values that the model cannot honor
        (IMAGES, {"response_format": "url"}, "response_format"),
        (IMAGES, {"background": "transparent"}, "background"),
        (IMAGES, {"output_format": "gif"}, "output_format"),
        (IMAGES, {"style": "vivid"}, "style"),
        (IMAGES, {"n": 11}, "n"),
        (IMAGES, {"n": 0}, "n"),
        (IMAGES, {"size": "64"}, "size"),
        (IMAGES, {"partial_images": 4, "stream": True}, "partial_images"),
        (IMAGES, {"partial_images": 2}, "partial_images"),
        (IMAGES, {"num_inference_steps": 0}, "num_inference_steps"),
        (IMAGES, {"num_inference_steps": "3"}, "num_inference_steps"),
        (IMAGES, {"guidance_scale": -1}, "guidance_scale"),
        (IMAGES, {"seed": -1}, "seed"),
        (IMAGES, {"solver": "heun9"}, "solver"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"logit_bias": {"1": 3}}, "logit_bias"),
        (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty"),
        (CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
        (CHAT, {"top_p": 1.5}, "top_p"),
        (CHAT, {"temperature": 3}, "temperature"),
        (CHAT, {"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        (CHAT, {"store": True}, "store"),
    ],
)
def test_a_field_is_refused_and_not_ignored(web: httpx.Client, path: str, fields: dict[str, Any], named: str) -> None:
    reply = web.post(path, json={**(SHORT if path == IMAGES else QUESTION), **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, named, "invalid_request_error")
    assert named.rpartition(".")[2] in error["message"]


def test_fields_that_are_honored_change_the_image(web: httpx.Client) -> None:
    """What is not refused is not ignored."""
    changes = [{}, {"num_inference_steps": 5}, {"guidance_scale": 6.0}, {"seed": 6}, {"timestep_shift": 0.5}]
    changes += [{"solver": "ab2", "num_inference_steps": 5}, {"step_cache": 2, "num_inference_steps": 5}]
    drawn = [web.post(IMAGES, json={**SHORT, **change}) for change in changes]
    assert [reply.status_code for reply in drawn] == [200] * len(changes)
    assert len({reply.json()["data"][0]["b64_json"] for reply in drawn}) == len(changes)
