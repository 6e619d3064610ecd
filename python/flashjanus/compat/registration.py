"""JanusFlow under transformers' Auto classes, as soon as a program imports these, and at no cost for one that does not.

    import flashjanus.compat
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("deepseek-ai/JanusFlow-1.3B", trust_remote_code=True)

No code of a repository runs: the classes of flashjanus.compat serve instead. Where the official package is imported as
well, the one whose classes were registered last serves.
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
"""Of transformers: those before it want a tokenizers library older than this package takes."""
_WATCHED = {
    "transformers.models.auto.configuration_auto": "configs",
    "transformers.models.auto.modeling_auto": "model",
    "transformers.models.auto.processing_auto": "processor",
}
"""By module of the Auto classes, the function of auto.py that registers there."""
_due: list[str] = []


def watch() -> None:
    """Registers where transformers' Auto classes are there, and else when they are imported."""
    for name in _WATCHED:
        if name in sys.modules:
            _register(name)
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Lets others find a module of the Auto classes, and registers once it has been executed."""

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
    if len(_due) > 1:  # called again during the import below, whose loop handles this one too
        return
    try:
        from flashjanus.compat import auto

        for step in _due:
            getattr(auto, step)()
    finally:
        _due.clear()
