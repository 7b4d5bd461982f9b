"""Hyperparameters are the fields of frozen dataclasses: made from settings, listed, explained."""

from __future__ import annotations

import dataclasses
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import annotated_types as bounds
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from rayal.errors import SettingsError, nearest
from rayal.settings.yamlfile import copied

T = TypeVar("T")


class UnknownKeys(ValueError):
    """Keys that a section of the settings does not have."""


def explain(error: ValidationError, where: str = "") -> list[str]:
    """Return one line per error: path, what was given, what is allowed."""
    lines: list[str] = []
    for e in error.errors(include_url=False):
        path = ".".join([where] * bool(where) + [str(step) for step in e["loc"]])
        value, ctx = e.get("input"), e.get("ctx", {})
        cause = ctx.get("error")
        if isinstance(cause, UnknownKeys):
            front = f"{path}." if path else ""
            lines += [f"{front}{key}: unknown key; {hint}" for key, hint in cause.args[0]]
        elif cause is not None:
            lines.append(f"{path}: {cause}" if path else str(cause))
        elif e["type"] == "missing":
            lines.append(f"{path}: missing, and there is no default")
        elif e["type"] != "too_short":
            lines.append(f"{path}: given {reprlib.repr(value)}, allowed: {_allowed(e['msg'])}")
        elif len(value) < ctx["min_length"]:  # else its entries were refused, each with its line
            lines.append(f"{path}: {len(value)} entries given, at least {ctx['min_length']} needed")
    return lines


def _allowed(message: str) -> str:
    text = message.removeprefix("Input should be ")
    text = re.sub(r"a valid dictionary.*|an object$", "a mapping", text)
    return text.replace("a valid tuple", "a list").replace("a valid string", "text (quote it)")


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """A hyperparameter of a strategy or learner.

    Attributes:
        name: the key in the settings.
        type: its type as text, such as ``int`` or ``'adam' | 'sgd'``.
        default: its default, or ``dataclasses.MISSING``.
        bounds: such as ``("≥ 2",)``.
        meaning: its description in the docstring of its class.
    """

    name: str
    type: str
    default: Any
    bounds: tuple[str, ...]
    meaning: str = ""


_BOUNDS: dict[type, tuple[str, str]] = {
    bounds.Gt: ("gt", ">"),
    bounds.Ge: ("ge", "≥"),
    bounds.Lt: ("lt", "<"),
    bounds.Le: ("le", "≤"),
    bounds.MultipleOf: ("multiple_of", "multiple of"),
    bounds.MinLen: ("min_length", "length ≥"),
    bounds.MaxLen: ("max_length", "length ≤"),
}


def parameters(cls: type) -> list[ParameterInfo]:
    """List the hyperparameters of a frozen dataclass; parts that are dataclasses are left out."""
    rows = []
    said = described(cls)
    for field, annotation in _fields(cls):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        types = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        if not any(dataclasses.is_dataclass(part) for part in (*types, default)):
            kind, limits = type_text(annotation), bounds_text(annotation)
            meaning = said.get(field.name, "")
            rows.append(ParameterInfo(field.name, kind, default, limits, meaning))
    return rows


def factory_parameters(factory: Callable[..., Any]) -> list[ParameterInfo]:
    """List the parameters of a network's factory that have a default, which settings may give."""
    hints = get_type_hints(factory, include_extras=True)
    said = described(factory)
    return [
        ParameterInfo(p.name, type_text(kind), p.default, bounds_text(kind), said.get(p.name, ""))
        for p in inspect.signature(factory).parameters.values()
        if p.default is not p.empty
        for kind in (hints.get(p.name, Any),)
    ]


def described(entry: Any) -> dict[str, str]:
    """Return the sentences under ``Args:`` of a docstring, by name; a class has its bases' too."""
    said: dict[str, str] = {}
    for part in reversed(entry.__mro__) if inspect.isclass(entry) else (entry,):
        _, _, below = inspect.cleandoc(part.__doc__ or "").partition("\nArgs:\n")
        block = re.split(r"\n(?=\S)", below, maxsplit=1)[0]
        for argument in re.split(r"\n(?= {4}\S)", f"\n{block}"):
            name, colon, text = argument.strip().partition(":")
            if colon:
                said[name] = " ".join(text.split())
    return said


def build(cls: type[T], params: Mapping[str, Any], where: str) -> T:
    """Make a frozen dataclass (a strategy, a learner) from settings.

    Args:
        cls: the dataclass; bounds of its ``Annotated`` fields hold.
        params: field name to value; nothing is coerced, lists become tuples.
        where: the place in the settings, for messages.

    Raises:
        SettingsError: for unknown and missing fields and for values of the wrong type or size.
    """
    known = {field.name: (field, annotation) for field, annotation in _fields(cls)}
    lines = [
        f"{where}.{name}: {cls.__name__} has no such parameter; {nearest(name, known)}"
        for name in map(str, params)
        if name not in known
    ]
    values = {}
    for name, (field, annotation) in known.items():
        if name in params:
            try:
                values[name] = TypeAdapter(annotation).validate_python(
                    copied(params[name], tuple), strict=True
                )
            except ValidationError as error:
                lines += explain(error, f"{where}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            lines.append(f"{where}.{name}: missing, and there is no default")
    if lines:
        raise SettingsError("\n".join(lines))
    return cls(**values)


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields that ``__init__`` takes, with their annotations; no ClassVar is one."""
    hints = get_type_hints(cls, include_extras=True)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls) if f.init]


def type_text(annotation: Any) -> str:
    """Return a type as settings name it, such as ``int | null`` or ``'adam' | 'sgd'``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0])
    if origin in (UnionType, Union):
        return " | ".join(map(type_text, args))
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin is not None:
        return f"{origin.__name__}[{', '.join('…' if a is ... else type_text(a) for a in args)}]"
    return "null" if annotation is NoneType else str(getattr(annotation, "__name__", annotation))


def bounds_text(annotation: Any) -> tuple[str, ...]:
    """Return the bounds that stand anywhere in an annotation, as text."""
    parts = get_args(annotation)
    if get_origin(annotation) is not Annotated:
        return tuple(limit for part in parts for limit in bounds_text(part))
    inside, *metadata = parts
    flat = [m for group in metadata for m in _flat(group)]
    known = [(m, *_BOUNDS[type(m)]) for m in flat if type(m) in _BOUNDS]
    return bounds_text(inside) + tuple(f"{sign} {getattr(m, name)}" for m, name, sign in known)


def _flat(metadata: Any) -> Iterable[Any]:
    if isinstance(metadata, FieldInfo):
        return metadata.metadata
    return metadata if isinstance(metadata, bounds.GroupedMetadata) else (metadata,)
