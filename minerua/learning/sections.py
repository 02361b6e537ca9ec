"""What all sections of a training file share: keys that are known, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic


class Section(pydantic.BaseModel):
    """A part of a training file: frozen, and closed to keys that it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def _number(value: Any) -> Any:
    """Refuses `yes` and `true`, which Python would take for 1; texts pass, because YAML reads `3e-4` as one."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _named(value: Any) -> Any:
    """Takes a bare name for a section with that name and no settings."""
    return {"name": value} if isinstance(value, str) else value


Whole = Annotated[int, pydantic.BeforeValidator(_number)]
Real = Annotated[float, pydantic.BeforeValidator(_number)]
ByName = pydantic.BeforeValidator(_named)


def at_least(least: float, *, default: Any) -> Any:
    """Returns the field of a number with a lower limit."""
    return pydantic.Field(default=default, ge=least)


def between(least: float, most: float, *, default: Any) -> Any:
    """Returns the field of a number with two limits, both included."""
    return pydantic.Field(default=default, ge=least, le=most)


def overlaid(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with some values replaced; mappings inside are gone through, everything else is replaced whole.

    Example:
        >>> overlaid({"optimizer": {"name": "adamw", "rate": 1e-3}}, {"optimizer": {"rate": 1e-2}})
        {'optimizer': {'name': 'adamw', 'rate': 0.01}}
    """
    result = dict(content)
    for key, value in changes.items():
        inside = result.get(key)
        if isinstance(inside, str) and isinstance(value, Mapping):
            inside = {"name": inside}  # a bare name stands for a section
        deeper = isinstance(inside, Mapping) and isinstance(value, Mapping)
        result[key] = overlaid(inside, value) if deeper else value  # type: ignore[arg-type]
    return result
