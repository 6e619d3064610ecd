"""Registers JanusFlow with transformers' Auto classes when a program imports them, at no cost for one that does not.

    import flashjanus.compat
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("deepseek-ai/JanusFlow-1.3B", trust_remote_code=True)

No code of a repository runs: the classes of flashjanus.compat are used instead. If the official package is imported as
well, the classes that were registered last are used.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

OLDEST = (4, 45)
"""The oldest version of transformers. Older ones need a tokenizers library that is too old for this package."""
_WATCHED = {
    "transformers.models.auto.configuration_auto": "configs",
    "transformers.models.auto.modeling_auto": "model",
    "transformers.models.auto.processing_auto": "processor",
}
"""Maps each module of Auto classes to the function of auto.py that registers with it."""
_due: list[str] = []


def watch() -> None:
    """Register with those of transformers' Auto classes that are imported, and with the others once they are."""
    for name in _WATCHED:
        if name in sys.modules:
            _register(name)
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Lets the other finders find a module of Auto classes, and registers after it has been executed."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WATCHED or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute: Callable[[ModuleType], None] = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                _register(fullname)

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def _register(name: str) -> None:
    version = str(getattr(sys.modules["transformers"], "__version__", "0.0"))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdecimal())
    if numbers < OLDEST:
        warnings.warn(
            f"transformers {version}: its Auto classes cannot load JanusFlow, which needs {OLDEST[0]}.{OLDEST[1]} or "
            "later. The classes of flashjanus.compat work without it",
            stacklevel=2,
        )
        return
    _due.append(_WATCHED[name])
    if len(_due) > 1:  # called from within the import below, whose loop will also handle this one
        return
    try:
        from flashjanus.compat import auto

        for step in _due:
            getattr(auto, step)()
    finally:
        _due.clear()
