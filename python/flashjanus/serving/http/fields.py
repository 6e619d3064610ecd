"""Kinds of fields that several bodies have."""

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
    """A body whose fields have the types of JSON as they are, and no others than these."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Only:
    """Of a field of the API: that it is taken where it asks for nothing, with null or a neutral value. why: no other
    can be honored."""

    neutral: tuple[Any, ...]
    why: str

    def check(self, value: Any) -> Any:
        """The value. Raises Unsupported."""
        if value is None or any(type(value) is type(one) and value == one for one in self.neutral):
            return value
        expected = " or ".join(json.dumps(one) for one in self.neutral) or "no value"
        raise Unsupported(f"expected {expected}, as {self.why}; got {value!r:.80}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.neutral], "description": f"nothing else, as {self.why}"}


def only(*neutral: Any, why: str) -> Only:
    """Annotates a field that takes null and these values alone."""
    return Only(neutral, why)


def extras(options: type[Options], names: Iterable[str]) -> dict[str, Any]:
    """Fields for `create_model`: options of the engine, whose ranges and words are those of the options."""
    properties, known = json_schema(options)["properties"], options_of(options)
    return {name: (_field(name, known[name], properties[name]), None) for name in names}


def _field(name: str, option: Option, schema: Mapping[str, Any]) -> Any:
    """As the option; null is its default."""
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
    """Of an option that is checked where the request is known: what can be said before that. Raises InputError."""
    low, high = int(option.low or 0), int(option.high or 0)
    if option.several and isinstance(value, list):
        return [values.integer(name, _whole(one), low, high) for one in value]
    return values.integer(name, value, low, high)


def _whole(value: Any) -> Any:
    """JSON has one kind of numbers, in which 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
"""Before an int: lets 5.0 be 5."""


def given(body: BaseModel, names: Iterable[str]) -> dict[str, Any]:
    """Of these fields, those that have a value."""
    return {name: value for name in names if (value := getattr(body, name)) is not None}
