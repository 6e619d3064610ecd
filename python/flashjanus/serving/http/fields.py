"""Field types that several bodies share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from flashjanus.sampling import values
from flashjanus.sampling.fields import Option, Options, json_schema, options_of
from flashjanus.serving.http.errors import Unsupported


class Body(BaseModel):
    """A request body that converts no JSON types and allows no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Only:
    """Marks a field of OpenAI's API that is accepted only as null or as a neutral value. why: the reason for which
    no other value can be honored."""

    neutral: tuple[Any, ...]
    why: str

    def check(self, value: Any) -> Any:
        """Return the value. Raises Unsupported."""
        if value is None or any(type(value) is type(one) and value == one for one in self.neutral):
            return value
        expected = " or ".join(json.dumps(one) for one in self.neutral) or "no value"
        raise Unsupported(f"expected {expected}, because {self.why}; got {value!r:.80}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.neutral], "description": f"nothing else, because {self.why}"}


def only(*neutral: Any, why: str) -> Only:
    """Annotate a field that accepts null and only these values."""
    return Only(neutral, why)


def extras(options: type[Options], names: Iterable[str]) -> dict[str, Any]:
    """Fields for `create_model` that stand for engine options, with the ranges and descriptions of the options."""
    properties, known = json_schema(options)["properties"], options_of(options)
    return {name: (_field(name, known[name], properties[name]), None) for name in names}


def _field(name: str, option: Option, schema: Mapping[str, Any]) -> Any:
    """A field for an option; null means its default."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    shown = {**schema, "type": [*dict.fromkeys([*types, "null"])]}
    if "enum" in schema:
        shown["enum"] = [*dict.fromkeys([*schema["enum"], None])]
    del shown["default"]

    def check(value: Any) -> Any:
        if value is None:
            return None
        whole = _whole(value) if option.kind is int else value
        return _late(name, option, whole) if option.late else option.check(name, whole)

    return Annotated[Any, AfterValidator(check), WithJsonSchema(shown)]


def _late(name: str, option: Option, value: Any) -> Any:
    """Check the part of an option that can be checked before the request is known. Raises InputError."""
    low, high = int(option.low or 0), int(option.high or 0)
    if option.several and isinstance(value, list):
        return [values.integer(name, _whole(one), low, high) for one in value]
    return values.integer(name, value, low, high)


def _whole(value: Any) -> Any:
    """Convert 5.0 to 5: JSON has one number type, in which 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
"""Converts 5.0 to 5 before an int is validated."""


def given(body: BaseModel, names: Iterable[str]) -> dict[str, Any]:
    """Those of the named fields that have a value."""
    return {name: value for name in names if (value := getattr(body, name)) is not None}
