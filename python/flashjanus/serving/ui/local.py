"""A gradio Blocks that stays on this machine: it fetches nothing that a client names, and its examples name no host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.data_classes import BlocksConfigDict


class LocalBlocks(gr.Blocks):
    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> Any:
        """Refuse URLs in the place of uploaded files, which gradio would fetch."""
        for path in _paths(inputs):
            if "://" in path:
                words = "Expected an uploaded image, got a URL: nothing is fetched from the network."
                raise gr.Error(words, print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **more)

    def get_config_file(self) -> BlocksConfigDict:
        config = super().get_config_file()
        for component in config["components"]:
            component.pop("example_inputs", None)
        return config


def _paths(value: Any) -> Iterator[str]:
    """Yield the paths of all files in a client's input."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = [*value.values()]
    if isinstance(value, list):
        for one in value:
            yield from _paths(one)
