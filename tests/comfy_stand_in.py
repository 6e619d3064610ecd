"""A stand-in of ComfyUI: its V3 interface as far as nodes of ours use it, with the arguments and checks of the real
one, and what its executor does with a workflow in the format of its API."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


class Input:
    def __init__(self, id: str, display_name: str | None = None, optional: bool = False, tooltip: str | None = None):
        self.id, self.optional, self.default = id, optional, None


class Widget(Input):
    def __init__(self, id: str, *, default: Any = None, **rest: Any) -> None:
        super().__init__(id, **rest)
        self.default = default


class Output:
    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ):
        self.id, self.is_output_list = id, is_output_list


def kind(io_type: str, of_values: type | tuple[type, ...] = object, widget: type[Input] = Input) -> Any:
    """A type of io: classes of its inputs and outputs, which know it."""
    names = {"io_type": io_type, "of_values": of_values}
    return type(io_type, (), {"Input": type("Input", (widget,), names), "Output": type("Output", (Output,), names)})


class StringInput(Widget):
    def __init__(self, id: str, *, multiline: bool = False, placeholder: str | None = None, default: str | None = None,
                 dynamic_prompts: bool | None = None, **rest: Any) -> None:  # fmt: skip
        super().__init__(id, default=default, **rest)


class NumberInput(Widget):
    def __init__(self, id: str, *, default: Any = None, min: Any = None, max: Any = None, step: Any = None,
                 control_after_generate: bool | None = None, **rest: Any) -> None:  # fmt: skip
        super().__init__(id, default=default, **rest)
        assert min <= default <= max
        self.min, self.max = min, max


class ComboInput(Widget):
    def __init__(self, id: str, options: list[str] | None = None, *, default: str | None = None, **rest: Any) -> None:
        super().__init__(id, default=default, **rest)
        assert isinstance(options, list)
        assert default in options
        self.options = options


class Schema:
    def __init__(self, node_id: str, display_name: str | None = None, category: str = "sd", inputs: Any = None,
                 outputs: Any = None, description: str = "", is_output_node: bool = False) -> None:  # fmt: skip
        self.node_id, self.inputs, self.outputs = node_id, inputs or [], outputs or []
        ids = [one.id for one in self.inputs] + [one.id or f"_{k}_" for k, one in enumerate(self.outputs)]
        assert len(set(ids)) == len(ids)
        self.is_output_node = is_output_node


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    """Its methods are those of the class: nodes have no state."""


class ComfyExtension:
    async def on_load(self) -> None: ...


class InterruptProcessingException(Exception):
    pass


class Comfy:
    """What a run of workflows has shown: (done, of, preview) in `progress`, texts in `shown`. interrupt: after so many
    reports of progress the user presses Cancel."""

    def __init__(self, models: Path) -> None:
        self.models, self.progress, self.shown = models, list[Any](), dict[str, Any]()
        self.interrupt: int | None = None
        self.nodes: dict[str, Any] = {}

    def modules(self) -> dict[str, dict[str, Any]]:
        io = SimpleNamespace(
            Custom=kind,
            String=kind("STRING", str, StringInput),
            Int=kind("INT", int, NumberInput),
            Float=kind("FLOAT", (int, float), NumberInput),
            Combo=kind("COMBO", str, ComboInput),
            Boolean=kind("BOOLEAN", bool, Widget),
            Image=kind("IMAGE", torch.Tensor),
            **{one.__name__: one for one in (Input, Output, Schema, NodeOutput, ComfyNode)},
        )
        ui = SimpleNamespace(PreviewText=lambda value: SimpleNamespace(as_dict=lambda: {"text": (value,)}))
        api = SimpleNamespace(execution=SimpleNamespace(set_progress=self._set_progress))
        latest = dict(io=io, ui=ui, ComfyExtension=ComfyExtension, ComfyAPISync=lambda: api)
        management = dict(throw_exception_if_processing_interrupted=self._throw)
        return {
            "folder_paths": {
                "models_dir": str(self.models),
                "get_folder_paths": {"loras": [str(self.models / "loras"), str(self.models / "more")]}.__getitem__,
            },
            "comfy": {},
            "comfy.model_management": management,
            "comfy_api": {},
            "comfy_api.latest": latest,
        }

    def _set_progress(self, value: float, max_value: float, node_id: Any = None, preview_image: Any = None) -> None:
        assert 0 < value <= max_value
        self.progress.append((value, max_value, preview_image))

    def _throw(self) -> None:
        if self.interrupt is not None and len(self.progress) >= self.interrupt:
            self.interrupt = None
            raise InterruptProcessingException

    def install(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Load the package in a folder of custom_nodes, as ComfyUI does when it starts."""
        for name, names in self.modules().items():
            module = ModuleType(name)
            module.__dict__.update(names)
            monkeypatch.setitem(sys.modules, name, module)
        name = str(folder)
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, f"{name}.nodes", raising=False)
        spec.loader.exec_module(module)

        async def loaded() -> Any:
            extension = await module.comfy_entrypoint()
            assert isinstance(extension, ComfyExtension)
            await extension.on_load()
            return await extension.get_node_list()

        nodes = asyncio.run(loaded())
        assert all(issubclass(node, ComfyNode) for node in nodes)
        self.nodes = {node.define_schema().node_id: node for node in nodes}

    def run(self, workflow: dict[str, Any], number: str) -> list[Any]:
        """The outputs of a node, after those that it needs; inputs are checked as ComfyUI does."""
        node = self.nodes[workflow[number]["class_type"]]
        schema, given = node.define_schema(), workflow[number]["inputs"]
        inputs = {one.id: one for one in schema.inputs}
        assert not set(given) - set(inputs)
        assert not {name for name, one in inputs.items() if not one.optional} - set(given)
        assert list(inspect.signature(node.execute).parameters) == list(inputs)
        values = {name: self._value(workflow, inputs[name], value) for name, value in given.items()}
        with torch.inference_mode():
            output = node.execute(**values)
        assert isinstance(output, NodeOutput)
        if output.ui is not None:
            assert schema.is_output_node
            self.shown[number] = output.ui.as_dict()
        for declared, value in zip(schema.outputs, output.args, strict=True):
            each = value if declared.is_output_list else [value]
            assert all(isinstance(one, declared.of_values) for one in each)
        return list(output.args)

    def _value(self, workflow: dict[str, Any], one: Any, value: Any) -> Any:
        if isinstance(value, list):
            number, slot = value
            source = self.nodes[workflow[number]["class_type"]].define_schema().outputs[slot]
            assert source.io_type == one.io_type
            return self.run(workflow, number)[slot]
        assert isinstance(value, one.of_values)
        if isinstance(one, NumberInput):
            assert one.min <= value <= one.max
        if isinstance(one, ComboInput):
            assert value in one.options
        return value
