"""The outputs of calls, and the classes of their warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ReferencePathWarning(UserWarning):
    """A call runs on plain torch modules, more slowly than on the engine. The text gives the reason."""


class CacheMisuseWarning(UserWarning):
    """Cached keys and values are used in a way that does not compute what was probably meant. The text says how."""


class Output(dict[Any, Any]):
    """Fields that can be read by attribute, by name, and by position, as in transformers' outputs.

    A field that was not requested is None as an attribute and has no position.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})
        self.__dict__["_names"] = tuple(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"this output has no '{name}'; it has {', '.join(self.__dict__.get('_names', ()))}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
        if name not in self._names:
            self.__dict__["_names"] = (*self._names, name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


class Config(dict[str, Any]):
    """A config.json whose keys, also those of its sections, are attributes too."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__({k: Config(v) if isinstance(v, Mapping) else v for k, v in data.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"config.json has no '{name}'") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_dict(self) -> dict[str, Any]:
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}
