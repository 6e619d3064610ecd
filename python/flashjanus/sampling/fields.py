"""What an option is: a field of a frozen dataclass that says what it means, what it may be, and how it is spelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from flashjanus.sampling import values

if TYPE_CHECKING:
    from typing_extensions import Self

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Option:
    """One option. Numbers lie in [low, high]; strings are among `choices`, where there are any.

    kind: of the value, or of each where there are several; `object` for what neither a command line nor JSON can hold.
    several: a value or a list of them. length: a list of so many. rule: checks instead of the range; allowed: what it
    takes, in words. late: checked where the request is known, as it depends on that.
    usual: what None stands for; presets: what it stands for with each preset, where that says something else.
    shown: the default in words where it is no value. schema: of JSON, beyond what follows from these.
    flag, metavar, parse: on the command line, where the flag is another than the name (None: there is none), and the
    text is no plain number or string.
    """

    default: Any
    meaning: str
    low: float | None
    high: float | None
    kind: type
    choices: tuple[str, ...] = ()
    several: bool = False
    length: int | None = None
    rule: Callable[[str, Any], Any] | None = None
    allowed: str = ""
    late: bool = False
    usual: Any = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shown: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    group: str = "sampling"
    flag: str | None = ""
    metavar: str | tuple[str, ...] | None = None
    parse: Callable[[str], Any] | None = None

    @property
    def takes_none(self) -> bool:
        return self.default is None or self.usual is not None

    @property
    def range(self) -> str:
        """What it may be, in words; nothing where the kind says it all."""
        if self.allowed or not (self.choices or self.low is not None):
            return self.allowed
        if self.choices:
            return values.names(self.choices)
        return (values.integers if self.kind is int else values.reals)(self.low or 0, self.high or 0)

    def check(self, name: str, value: Any) -> Any:
        """The value in its final type. Raises InputError."""
        if self.late or (value is None and self.takes_none):
            return value
        if self.rule is not None:
            return self.rule(name, value)
        if self.choices:
            return values.choice(name, value, self.choices)
        if self.low is None or self.high is None:
            return value
        if self.kind is int:
            return values.integer(name, value, int(self.low), int(self.high))
        return values.number(name, value, self.low, self.high)

    def spelled(self, name: str) -> str:
        """Its flag, where it has one."""
        return f"--{(self.flag or name).replace('_', '-')}"

    def ends(self, name: str, default: Any) -> str:
        """The default as it is shown: "default: 512", or what each preset has, "exact: euler; fast: ab2"."""
        if default is None and self.presets:
            differing = {preset: options[name] for preset, options in self.presets.items() if name in options}
            shown = {next(iter(self.presets)): self.usual, **differing}
            return "; ".join(f"{preset}: {self._shown(value)}" for preset, value in shown.items())
        words = self.shown if default is None else self._shown(default)
        return f"default: {words}" if words and default is not False else ""

    def help(self, name: str, default: Any) -> str:
        """The meaning and the default."""
        ends = self.ends(name, default)
        return f"{self.meaning} ({ends})" if ends else self.meaning

    def _shown(self, value: Any) -> str:
        if isinstance(value, tuple):
            return (" " if self.length else ",").join(map(self._shown, value))
        return f"{value:g}" if isinstance(value, float) else str(value)


def option(default: Any, meaning: str, low: float | None = None, high: float | None = None, **facts: Any) -> Any:
    """A field with an `Option` of these facts. kind: follows from the range or the choices, where there are any."""
    kind = str if "choices" in facts else object if low is None else type(low)
    facts = {"kind": kind, **facts}
    return field(default=default, metadata={"option": Option(default, meaning, low, high, **facts)})


@dataclass(frozen=True)
class Options:
    """A dataclass whose fields are made by `option`."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Those of the names that are options: `of(locals())`, where a function begins whose parameters they are."""
        return cls(**{name: given[name] for name in options_of(cls) if name in given})

    def checked(self) -> Self:
        """The same with every value in its final type, None where it was. Raises InputError."""
        options = options_of(type(self)).items()
        return replace(self, **{name: option.check(name, getattr(self, name)) for name, option in options})

    def given(self, name: str) -> Any:
        """The value, or what None stands for."""
        value = getattr(self, name)
        return options_of(type(self))[name].usual if value is None else value


def options_of(options: type[Options], group: str | None = None) -> dict[str, Option]:
    """By name, all or those of a group; those that a preset gives come after the preset."""
    found = sorted(
        ((one.name, one.metadata["option"]) for one in fields(options)), key=lambda one: bool(one[1].presets)
    )
    return {name: option for name, option in found if group in (None, option.group)}


def json_schema(options: type[Options]) -> dict[str, Any]:
    """The JSON Schema of an object of these options; what JSON cannot hold is left out."""
    known = {name: option for name, option in options_of(options).items() if option.kind in JSON_TYPES}
    properties = {name: _property(name, option) for name, option in known.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(name: str, option: Option) -> dict[str, Any]:
    one: dict[str, Any] = {"type": JSON_TYPES[option.kind]}
    if option.low is not None:
        one |= dict(minimum=option.low, maximum=option.high)
    if option.choices:
        one["enum"] = [*option.choices, *[None] * option.takes_none]
    types = [one["type"]]
    if option.length:
        one, types = dict(items=one, minItems=option.length, maxItems=option.length), ["array"]
    elif option.several:
        one, types = {**one, "items": one}, [*types, "array"]
    types += ["null"] * option.takes_none
    words = f"{option.meaning}; {option.range}" if option.range else option.meaning
    ends = option.ends(name, option.default)
    return {
        **one,
        "type": types if len(types) > 1 else types[0],
        "description": f"{words} ({ends})" if ends else words,
        "default": option.default,
        **option.schema,
    }
