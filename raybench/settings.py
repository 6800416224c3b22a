"""What every settings model is made of, and values that the search may choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown keys. Every component's settings are one.

    Attributes:
        search_space: of what belongs to an explainer, the settings that are searched where nobody
            names others (`explainer_search`), and what from.
        search_if: settings that matter only where another one has one of some values; elsewhere
            they are not drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    search_space: ClassVar[Mapping[str, Range | Choice]] = {}
    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {}


class Range(Settings):
    """An interval that the search draws from."""

    low: float = Field(description="lower end")
    high: float = Field(description="upper end")
    log: bool = Field(False, description="draw on a logarithmic scale")
    first: float | None = Field(
        None, description="what the first trial takes; null: it is drawn like any other"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a logarithmic scale, found {self.low}")
        if self.first is not None and not self.low <= self.first <= self.high:
            raise ValueError(f"first must lie from {self.low} to {self.high}, found {self.first}")
        return self


class Choice(Settings):
    """A list that the search picks from."""

    choices: tuple[bool | int | float | str | None, ...] = Field(
        min_length=1, description="the values to pick from"
    )
    first: bool | int | float | str | None = Field(
        None, description="what the first trial takes; null: it is drawn like any other"
    )

    @model_validator(mode="after")
    def _listed(self) -> Self:
        if self.first is not None and self.place is None:
            listed = ", ".join(map(str, self.choices))
            raise ValueError(f"first must be one of {listed}, found {self.first!r}")
        return self

    @property
    def place(self) -> int | None:
        """Which of the choices `first` is; None where it is none of them."""
        same = (n for n, value in enumerate(self.choices) if _same(value, self.first))
        return next(same, None)


def _same(one: Any, other: Any) -> bool:
    """Whether two choices are one: 1 is not true, but "1e-5", text to YAML, is 1.0e-5."""
    if isinstance(one, bool) or isinstance(other, bool) or None in (one, other):
        return one is other
    try:
        return float(one) == float(other)
    except ValueError:
        return bool(one == other)


def _kind(value: Any) -> str:
    if isinstance(value, Range) or (isinstance(value, dict) and {"low", "high"} & set(value)):
        return "range"
    if isinstance(value, Choice) or (isinstance(value, dict) and "choices" in value):
        return "choice"
    return "value"


Domain = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choice, Tag("choice")],
    Discriminator(
        _kind,
        custom_error_type="domain",
        custom_error_message="Expected {low: ..., high: ...} or {choices: [...]}",
    ),
]
"""What a setting is searched in, where a plain value will not do."""


def searched(value_type: Any) -> Any:
    """The type of a setting that is a value, a `Range` or a `Choice`.

    The kind is told apart before validation, so that a wrong number is reported once, as a wrong
    number, and not three times as three wrong kinds.
    """
    return Annotated[
        Annotated[value_type, Tag("value")]
        | Annotated[Range, Tag("range")]
        | Annotated[Choice, Tag("choice")],
        Discriminator(_kind),
    ]


def domain_of(value_type: Any) -> Any:
    """The type of a searched setting whose domain lies within the bounds of `value_type`."""
    ends = create_model(
        "ends", low=(value_type, ...), high=(value_type, ...), first=(value_type | None, None)
    )
    picks = create_model("picks", __base__=Choice, choices=(tuple[value_type, ...], ...))

    def within(value: Any) -> Any:
        # What pydantic raises in here gets the setting's path before its own.
        if isinstance(value, Range):
            if value_type is bool:
                raise ValueError("expected true, false or {choices: [...]}, found an interval")
            ends.model_validate({"low": value.low, "high": value.high, "first": value.first})
        if isinstance(value, Choice):
            # Through the type itself, which makes 1e-5, text to YAML, a number.
            known = picks.model_validate({"choices": value.choices}).choices
            place = None if value.first is None else value.place
            first = None if place is None else known[place]
            return Choice(choices=known, first=first)
        return value

    return Annotated[searched(value_type), AfterValidator(within)]


def with_domains(model: type[Settings], name: str, module: str) -> Any:
    """A model with the same settings, each of which may also be a `Range` or a `Choice`.

    Args:
        name, module: where the new class can be imported from, since workers unpickle it.
    """
    fields: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        bounded = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        fields[key] = (domain_of(bounded), Field(info.default, description=info.description))
    made: Any = create_model(
        name, __base__=Settings, __doc__=model.__doc__, __module__=module, **fields
    )
    made.search_if = model.search_if
    return made


def values_of(value: Any) -> tuple[Any, ...]:
    """All choices of a searched setting, the ends of its interval, or the one plain value."""
    if isinstance(value, Choice):
        return value.choices
    return (value.low, value.high) if isinstance(value, Range) else (value,)


def settled(value: Any) -> Any:
    """What stands for a searched setting where nothing is drawn: its `first`, where it has one.

    Else the first of the choices, or the low end of the interval.
    """
    if isinstance(value, Range | Choice) and value.first is not None:
        return value.first
    if isinstance(value, Choice):
        return value.choices[0]
    return value.low if isinstance(value, Range) else value


def named(union: Any, default: str | None = None) -> Any:
    """The type of a setting that is one of a family, told apart by `name`.

    A plain string stands for the member of that name with its defaults: `slic` is `{name: slic}`.

    Args:
        union: the members, each a `Settings` with `name: Literal[...]`, joined by `|`.
        default: member that keys without a `name` belong to; None: a name is required.
    """

    def spelled_out(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if default is not None and isinstance(value, dict) and "name" not in value:
            return {"name": default, **value}
        return value

    return Annotated[
        Annotated[union, Field(discriminator="name")],
        BeforeValidator(spelled_out),
    ]
