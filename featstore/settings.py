"""Settings: dataclasses whose fields state type, range and meaning beside the default; TOML files and texts fill them.

Whatever is wrong with a file or a value becomes one line: where, which key, what was expected, what was found.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class one of settings. Nothing is converted but whole numbers to floats, lists to tuples."""
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return cast("type[T]", dataclass(frozen=True, config=config)(cls))  # by its hints another class comes back


Count = Annotated[int, Field(ge=1)]
WholeNumber = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Several = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_SPOKEN = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}


class ConfigError(ValueError):
    """A setting that does not exist or is missing, a value of the wrong type or out of range, a file that is not TOML."""


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The keys and values of a TOML file in UTF-8; a byte-order mark is accepted.

    Raises
    ------
    ConfigError : it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: not a TOML file: {error}; it holds lines such as key = 1 or key = "text"') from None


def read_texts(cls: type, texts: Iterable[str]) -> dict[str, Any]:
    """Keys and values out of ``key=value``: lists as ``0.3,0.5``, tables as ``ami*:3,sim*:1``.

    Raises
    ------
    ConfigError : not of that form, or `cls` has no such key.
    """
    values = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(f"--set {text!r}: expected key=value")
        _check_known(cls, key, "")
        try:
            values[key] = _parsed(value, _schema(cls, key))
        except ValueError:
            values[key] = value  # which `make` refuses, and says why
    return values


def make(cls: type[T], *sources: tuple[str, Mapping[str, Any]]) -> T:
    """An object of `cls`, a class of `settings`, with values from several places; what comes later counts.

    Parameters
    ----------
    sources : (where, values); what `where` says stands before an error, "" where the key says enough.

    Raises
    ------
    ConfigError
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for where, found in sources:
        place = f"{where}: " if where else ""
        for key, value in found.items():
            _check_known(cls, key, place)
            values[key], origin[key] = value, place
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        places = {origin[key]} if key in origin else set(origin.values())
        raise ConfigError((places.pop() if len(places) == 1 else "") + _sentence(cls, first, values)) from None


def table(cls: type) -> str:
    """Every setting of `cls` in a line: key=default, what it may be, what it means."""
    rows = []
    for key, field in _fields(cls).items():
        left = key if field.is_required() else f"{key}={_text(field.get_default(call_default_factory=True))}"
        expected = ", ".join(filter(None, (_spoken(_schema(cls, key)), _range(_schema(cls, key)))))
        rows.append((left, expected, field.description or ""))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def _fields(cls: Any) -> dict[str, FieldInfo]:
    """What a class of `settings` is made of."""
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__
    return fields


def _check_known(cls: type, key: str, place: str) -> None:
    names = list(_fields(cls))
    if key not in names:
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise ConfigError(f"{place}no setting is called {key!r}; {hint}")


# ---- what a field may be, out of its JSON schema


@cache
def _schemas(cls: type) -> dict[str, Any]:
    properties: dict[str, Any] = TypeAdapter(cls).json_schema()["properties"]
    return properties


def _schema(cls: type, key: str) -> dict[str, Any]:
    found: dict[str, Any] = _schemas(cls)[key]
    schema: dict[str, Any] = found["anyOf"][0] if "anyOf" in found else found  # the second is that of None
    return schema


def _sentence(cls: type, error: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says, in our words."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    key, *inside = error["loc"]
    if error["type"] == "missing":
        return f"missing key {key!r}"
    schema, found, name = _schema(cls, key), values[key], key
    for part in inside:
        if isinstance(part, str) and "additionalProperties" in schema:
            schema, found, name = schema["additionalProperties"], found[part], f"{name}.{part}"
    if error["type"] == "value_error":
        expected = str(error["ctx"]["error"])
    else:
        expected = _range(schema) if error["type"] in _OUT_OF_RANGE else _spoken(schema)
    return f"{name} must be {expected}, found {found!r}"


def _spoken(schema: Mapping[str, Any]) -> str:
    """The type: "a whole number", "one of float32, bf16", …"""
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(filter(None, schema['enum']))}"
    if "prefixItems" in schema:
        return f"{_spoken(schema['prefixItems'][0])} or [low, high]"
    if "items" in schema:
        return f"{_spoken(schema['items']).removeprefix('a ')}s separated by commas"
    if "additionalProperties" in schema:
        return "name:number pairs separated by commas"
    return _SPOKEN[schema["type"]]


def _range(schema: Mapping[str, Any]) -> str:
    """The range of the number or of the numbers inside: "0 or more", "1 to 6", …; "" where any will do."""
    inside = (schema.get("prefixItems") or [None])[0] or schema.get("items") or schema.get("additionalProperties")
    if inside:
        return _range(inside)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None and "exclusiveMaximum" not in schema:
        return f"{low:g} or more"
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)


# ---- values as text


def _parsed(text: str, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if kind == "array":
        return [_parsed(part, schema["items"]) for part in parts]
    if kind == "object":
        pairs = [part.rpartition(":") for part in parts]
        return {name.strip(): _parsed(value.strip(), schema["additionalProperties"]) for name, _, value in pairs}
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    return int(text) if kind == "integer" else float(text) if kind == "number" else text


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{_text(inside)}" for name, inside in value.items())
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
