"""The reference of the configuration file, written from its definition.

`python -m engine.config_reference FILE` writes the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.config import Config

_HEAD = """\
# Configuration

<!-- Written by `make docs` from engine/config.py; a test fails where the two differ. -->

A configuration is a TOML file. `[task]` and `[data]` are needed, everything else has a default. An unknown
key is refused, with the nearest known one. Paths are relative to the folder of the file.

```toml
[task]
name = "tickets"
description = "What is this message to support about?"
labels = { billing = "invoices, refunds, charges", outage = "something does not work", praise = "thanks" }

[data]
file = "tickets/*.parquet"
fractions = [0.7, 0.15, 0.15]

[resolve]
max_rounds = 4
floors = { outage = { recall = 0.8 } }
```
"""

_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def configuration_reference() -> str:
    """The page docs/configuration.md: every table, every key with its type, default and meaning."""
    return "\n".join([_HEAD, *_tables()]).rstrip() + "\n"


def _tables() -> Iterator[str]:
    shown: dict[type[BaseModel], str] = {}
    for name, field in Config.model_fields.items():
        if field.exclude:  # `base` is no key of the file
            continue
        table = _table_of(field)
        yield f"## [{name}]\n\n{field.description or ' '.join((table.__doc__ or '').split())}\n"
        keys = dict(table.model_fields)
        if (known := next((kind for kind in table.__mro__ if kind in shown), None)) is not None:
            yield f"The keys of [{shown[known]}]{', and:' if table is not known else '.'}\n"
            keys = {key: one for key, one in keys.items() if key not in known.model_fields}
        shown.setdefault(table, name)
        if get_origin(field.annotation) is dict:
            yield f'A table of its own for each, `[{name}."NAME"]`:\n'
        if keys:
            yield from _rows(keys)
            yield ""


def _rows(keys: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for key, one in keys.items():
        cells = (f"`{key}`", type_in_words(one), _default(one), one.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table_of(field: FieldInfo) -> type[BaseModel]:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    raise TypeError(f"{field!r} is no table")


def type_in_words(field: FieldInfo) -> str:
    """What a key may hold, bounds included."""
    if field.annotation == dict[str, str]:  # a list of labels is turned into this before it is validated
        return "list of texts, or table of texts"
    if field.annotation in (tuple[str, ...], str | tuple[str, ...]):
        return "text, or list of texts"
    bounds = ", ".join(_bounds(field.metadata))
    words = _in_words(field.annotation)
    return f"{words}, {bounds}" if bounds else words


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_in_words(one) for one in arguments if one is not NoneType)
    if origin is tuple:
        return f"list of {len(arguments)} {_WORDS[arguments[0]]}s"
    if origin is dict:
        return (
            f"table of {_in_words(arguments[1])}" if arguments[0] is str else "tables of numbers from 0 to 1"
        )
    raise TypeError(f"no words for {kind!r}: add them here")


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for one in metadata:
        for name, words in _BOUNDS.items():
            if (value := getattr(one, name, None)) is not None:
                yield words.format(f"{value:g}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_reference(), encoding="utf-8")
