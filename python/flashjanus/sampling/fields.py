"""Options: fields of a frozen dataclass that carry their meaning, their allowed values and their spelling."""

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
    """One option. A number must lie in [low, high], and a string must be one of `choices` if there are any.

    kind: type of the value, or of each value in a list. It is `object` if neither a command line nor JSON can hold it.
    several: the option takes one value or a list. length: the option takes a list of this length.
    rule: function that checks the value instead of the range; allowed: the values that it accepts, in words.
    late: the value depends on the request and is checked later, when the request is known.
    usual: the value that None stands for; presets: the options of each preset, which override `usual`.
    shown: text that help shows as the default if the default is None. schema: additional JSON Schema keywords.
    flag: name of the command-line flag if it differs from the option's name; None if there is no flag.
    metavar, parse: how the command line names the value, and the function that parses its text.
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
        """The allowed values in words. Empty if `kind` alone describes them."""
        if self.allowed or not (self.choices or self.low is not None):
            return self.allowed
        if self.choices:
            return values.names(self.choices)
        return (values.integers if self.kind is int else values.reals)(self.low or 0, self.high or 0)

    def check(self, name: str, value: Any) -> Any:
        """Return the value in its final type. Raises InputError."""
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
        """The command-line flag. Only for an option whose `flag` is not None."""
        return f"--{(self.flag or name).replace('_', '-')}"

    def ends(self, name: str, default: Any) -> str:
        """The default as help shows it: "default: 512", or the value in each preset: "exact: euler; fast: ab2"."""
        if default is None and self.presets:
            differing = {preset: options[name] for preset, options in self.presets.items() if name in options}
            shown = {next(iter(self.presets)): self.usual, **differing}
            return "; ".join(f"{preset}: {self._shown(value)}" for preset, value in shown.items())
        words = self.shown if default is None else self._shown(default)
        return f"default: {words}" if words and default is not False else ""

    def help(self, name: str, default: Any) -> str:
        """The help text: the meaning, followed by the default."""
        ends = self.ends(name, default)
        return f"{self.meaning} ({ends})" if ends else self.meaning

    def _shown(self, value: Any) -> str:
        if isinstance(value, tuple):
            return (" " if self.length else ",").join(map(self._shown, value))
        return f"{value:g}" if isinstance(value, float) else str(value)


def option(default: Any, meaning: str, low: float | None = None, high: float | None = None, **facts: Any) -> Any:
    """Make a dataclass field that carries an `Option`. Without `kind`, the type follows from choices or range."""
    kind = str if "choices" in facts else object if low is None else type(low)
    facts = {"kind": kind, **facts}
    return field(default=default, metadata={"option": Option(default, meaning, low, high, **facts)})


@dataclass(frozen=True)
class Options:
    """Base class of dataclasses whose fields are made by `option`."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Take the options out of a mapping. A function with the options as parameters begins with `of(locals())`."""
        return cls(**{name: given[name] for name in options_of(cls) if name in given})

    def checked(self) -> Self:
        """A copy with every value in its final type. None stays None. Raises InputError."""
        options = options_of(type(self)).items()
        return replace(self, **{name: option.check(name, getattr(self, name)) for name, option in options})

    def given(self, name: str) -> Any:
        """The value of an option, or its usual value if it is None."""
        value = getattr(self, name)
        return options_of(type(self))[name].usual if value is None else value


def options_of(options: type[Options], group: str | None = None) -> dict[str, Option]:
    """The options by name: all, or those of one group. Options that a preset sets come after the preset."""
    found = sorted(
        ((one.name, one.metadata["option"]) for one in fields(options)), key=lambda one: bool(one[1].presets)
    )
    return {name: option for name, option in found if group in (None, option.group)}


def json_schema(options: type[Options]) -> dict[str, Any]:
    """The JSON Schema of an object with these options. Options that JSON cannot hold are left out."""
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
