"""diffusers' names for low-rank adapters, on those of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError


class LoraPipeline:
    """Adapters of the language model, in PEFT's files. One draws an image: the one that was loaded or set last.

    Pipelines of one model share what is loaded, and each has an adapter of its own that is set.
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
        """Load an adapter and set it; see `JanusFlow.load_adapter`, whose errors are raised."""
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
        """Draw with this adapter from now on. Raises InputError for several, and for weights other than 1."""
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
        """The adapter that draws, as a list of one or none."""
        return [] if self._drawing is None else [self._drawing]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """All that are loaded, by the part that they change."""
        loaded = list(self._model.adapters)
        return {"language_model": loaded} if loaded else {}

    def disable_lora(self) -> None:
        """Draw without an adapter, which stays loaded."""
        self._disabled = True

    def enable_lora(self) -> None:
        """Draw with the adapter that is set."""
        self._disabled = False

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload these. Raises InputError."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            self._check(name)
        for name in names:
            self._model.unload_adapter(name)
            self._lora.pop(name, None)
            self._active = None if self._active == name else self._active

    def unload_lora_weights(self) -> None:
        """Unload what this pipeline has loaded, but for one that is fused, which stays in the weights."""
        loaded = self._model.adapters
        self.delete_adapters([name for name in self._lora if name in loaded and not loaded[name].merged])
        self._active = None

    def fuse_lora(self, components: Any = None, lora_scale: float = 1.0, adapter_names: Any = None) -> None:
        """Add the adapter that is set, or the one that is named, to the weights; see `JanusFlow.merge_adapter`."""
        if lora_scale != 1:
            raise InputError(f"lora_scale: expected 1, which keeps an adapter's own scale, got {lora_scale!r}")
        if adapter_names is not None:
            self.set_adapters(adapter_names)
        if self._active is None:
            raise InputError("fuse_lora: expected a loaded and active adapter, got none; see load_lora_weights")
        self._model.merge_adapter(self._active)

    def unfuse_lora(self, components: Any = None) -> None:
        """The weights as they were before `fuse_lora`, bit for bit. Raises InputError."""
        self._model.unmerge_adapter()

    @property
    def _drawing(self) -> str | None:
        """What requests name: nothing where it is in the weights already. InputError where it is loaded no longer."""
        loaded, name = self._model.adapters, self._active
        if self._disabled or name is None:
            return None
        if name not in loaded:
            raise InputError(f"adapter: {name!r} is active but no longer loaded; set another, or call disable_lora()")
        return None if loaded[name].merged else name

    def _reload_adapters(self, model: JanusFlow) -> None:
        """All that are loaded, into another model."""
        for name, one in self._model.adapters.items():
            source, revision = self._lora.get(name, (one.source, None))
            model.load_adapter(one.source, name, revision=revision if source == one.source else None)
            if one.merged:
                model.merge_adapter(name)

    def _check(self, name: str) -> None:
        if name not in self._model.adapters:
            loaded = ", ".join(self._model.adapters) or "none"
            raise InputError(f"adapter_names: expected the name of a loaded adapter ({loaded}), got {name!r:.80}")
