"""What the value types share."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import datetime
from typing import Any, TypeVar

_R = TypeVar("_R", bound="Record")


class Record:
    """A value type: a frozen dataclass made by keyword, with those methods of pydantic's models that programs use on the official SDK's types."""

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        """The fields as a dict, records in them as dicts too. mode "json": with dates as text and bytes in base64."""
        return {f.name: _plain(getattr(self, f.name), mode == "json") for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def model_dump_json(self, indent: int | None = None) -> str:
        """The fields as JSON."""
        return json.dumps(self.model_dump("json"), indent=indent, ensure_ascii=False)

    def model_copy(self: _R, *, update: dict[str, Any] | None = None) -> _R:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **(update or {}))  # type: ignore[type-var]


def _plain(value: Any, as_json: bool) -> Any:
    if isinstance(value, Record):
        return value.model_dump("json" if as_json else "python")
    if isinstance(value, dict):
        return {k: _plain(v, as_json) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, as_json) for v in value]
    if as_json and isinstance(value, datetime):
        return value.isoformat()
    if as_json and isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def number(record: Record, *names: str) -> None:
    """Checks that fields are numbers of their kind, so that a mistake is named where it is made: float fields take integers, integer fields only
    integers (also numpy's), None stays."""
    for name in names:
        value = getattr(record, name)
        if value is None:
            continue
        whole = "int" in str(record.__dataclass_fields__[name].type)  # type: ignore[attr-defined]
        try:
            if isinstance(value, (str, bytes, bool)):
                raise TypeError
            made: float = value.__index__() if whole else float(value)
        except (TypeError, AttributeError, ValueError):
            raise ValueError(f"{type(record).__name__}: {name} is {value!r}, wanted {'an integer' if whole else 'a number'}") from None
        object.__setattr__(record, name, made)
