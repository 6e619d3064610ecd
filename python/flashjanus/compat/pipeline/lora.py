"""diffusers' methods for low-rank adapters, on the model's adapters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError


class LoraPipeline:
    """Adapters of the language model, read from PEFT's files. An image is drawn with one of them, the active one, which
    is the one that was loaded or set last.

    Pipelines of one model share the loaded adapters, and each pipeline has its own active one.
    """

    _model: JanusFlow

    def __init__(self) -> None:
        super().__init__()
        self._lora: dict[str, tuple[str, str | None]] = {}
        self._active: str | None = None
        self._disabled = False

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str],
        adapter_name: str | None = None,
        *,
        revision: str | None = None,
        weight_name: str | None = None,
    ) -> None:
        """Load an adapter and make it the active one. Raises the errors of `JanusFlow.load_adapter`."""
        source = pretrained_model_name_or_path_or_dict
        if weight_name not in (None, "adapter_model.safetensors"):
            raise InputError(
                "weight_name: expected adapter_model.safetensors beside adapter_config.json, as PEFT saves them, got "
                f"{weight_name!r:.80}"
            )
        if not isinstance(source, str | os.PathLike):
            raise InputError(
                f"expected the folder or the hub id of an adapter that PEFT saved, got {type(source).__name__}"
            )
        before = set(self._model.adapters)
        self._model.load_adapter(source, adapter_name, revision=revision)
        (name,) = set(self._model.adapters) - before
        self._lora[name] = (os.fspath(source), revision)
        self._active, self._disabled = name, False

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Make an adapter the active one. Raises InputError for several adapters and for weights other than 1."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) != 1:
            raise InputError(f"adapter_names: expected one name, because one adapter draws an image, got {names!r:.80}")
        weights = adapter_weights if isinstance(adapter_weights, list | tuple) else [adapter_weights]
        if any(weight not in (None, 1) for weight in weights):
            raise InputError(
                f"adapter_weights: expected 1, which keeps an adapter's own scale, got {adapter_weights!r:.80}"
            )
        self._check(names[0])
        self._active, self._disabled = names[0], False

    def get_active_adapters(self) -> list[str]:
        """A list of the active adapter, or an empty list."""
        return [] if self._drawing is None else [self._drawing]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The loaded adapters, by the part of the model that they change."""
        loaded = list(self._model.adapters)
        return {"language_model": loaded} if loaded else {}

    def disable_lora(self) -> None:
        """Draw without an adapter, which stays loaded."""
        self._disabled = True

    def enable_lora(self) -> None:
        """Draw with the active adapter again."""
        self._disabled = False

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload adapters. Raises InputError."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._check(name)
        for name in names:
            self._model.unload_adapter(name)
            self._lora.pop(name, None)
            self._active = None if self._active == name else self._active

    def unload_lora_weights(self) -> None:
        """Unload the adapters that this pipeline has loaded, except a fused one, which stays in the weights."""
        loaded = self._model.adapters
        self.delete_adapters([name for name in self._lora if name in loaded and not loaded[name].merged])
        self._active = None

    def fuse_lora(self, components: Any = None, lora_scale: float = 1.0, adapter_names: Any = None) -> None:
        """Add the active adapter, or the named one, to the weights; see `JanusFlow.merge_adapter`."""
        if lora_scale != 1:
            raise InputError(f"lora_scale: expected 1, which keeps an adapter's own scale, got {lora_scale!r}")
        if adapter_names is not None:
            self.set_adapters(adapter_names)
        if self._active is None:
            raise InputError("fuse_lora: expected a loaded and active adapter, got none; see load_lora_weights")
        self._model.merge_adapter(self._active)

    def unfuse_lora(self, components: Any = None) -> None:
        """Restore the weights from before `fuse_lora`, bit for bit. Raises InputError."""
        self._model.unmerge_adapter()

    @property
    def _drawing(self) -> str | None:
        """The adapter that requests name, or None if it is already in the weights. Raises InputError if it was
        unloaded."""
        loaded, name = self._model.adapters, self._active
        if self._disabled or name is None:
            return None
        if name not in loaded:
            raise InputError(f"adapter: {name!r} is active but no longer loaded; set another, or call disable_lora()")
        return None if loaded[name].merged else name

    def _reload_adapters(self, model: JanusFlow) -> None:
        """Load all of this model's adapters into another model."""
        for name, one in self._model.adapters.items():
            source, revision = self._lora.get(name, (one.source, None))
            model.load_adapter(one.source, name, revision=revision if source == one.source else None)
            if one.merged:
                model.merge_adapter(name)

    def _check(self, name: str) -> None:
        if name not in self._model.adapters:
            loaded = ", ".join(self._model.adapters) or "none"
            raise InputError(f"adapter_names: expected the name of a loaded adapter ({loaded}), got {name!r:.80}")
