"""Strict reading of JSON objects: every wrong type becomes an error that names its path.

Must never coerce a value (no "1" for 1) nor drop a field silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from inferx.domain.meta import type_name
from inferx.errors import BadRequest

INT_MAX = 2**53 - 1  # what every JSON implementation keeps exact
# What the services count and wait for has to fit their 32 bits, also in milliseconds.
COUNT_MAX = 2**31 - 1
SECONDS_MAX = 30 * 86_400


class Fields:
    """One JSON object being read; fields never asked for end up in `warnings` by `finish`."""

    def __init__(self, value: object, path: str, warnings: list[str]) -> None:
        if not isinstance(value, Mapping):
            raise BadRequest(f"{path or 'manifest'}: expected object, got {type_name(value)}")
        self.value: Mapping[str, Any] = value
        self.path = path
        self.warnings = warnings
        self._seen: set[str] = set()

    def at(self, name: str) -> str:
        """The JSON path of field `name`."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise the error of field `name`."""
        raise BadRequest(f"{self.at(name)}: {problem}")

    def has(self, name: str) -> bool:
        """Whether the field is present and not null."""
        return self.value.get(name) is not None

    def take(self, name: str) -> Any:
        """The raw field (null = absent = None), marked as known."""
        self._seen.add(name)
        return self.value.get(name)

    def _required(self, name: str, default: object, expected: str) -> None:
        if default is None:
            self.fail(name, f"required ({expected})")

    def string(self, name: str, default: str | None = None, *, what: str = "string") -> str:
        """A string; without `default` the field is required."""
        value = self.take(name)
        if value is None:
            self._required(name, default, what)
            return default or ""
        if not isinstance(value, str):
            self.fail(name, f"expected {what}, got {type_name(value)}")
        if "\0" in value:
            self.fail(name, "must not contain a NUL character")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """A string that is one of `allowed`."""
        value = self.string(name, default)
        if value not in allowed:
            self.fail(name, f"expected one of {', '.join(allowed)}, got {value!r}")
        return value

    def integer(
        self,
        name: str,
        default: int | None = None,
        *,
        unit: str = "",
        low: int = 0,
        high: int = INT_MAX,
    ) -> int:
        """An integer within `low..high`; `unit` only words the error."""
        value = self.take(name)
        expected = f"integer {unit}".strip()
        if value is None:
            self._required(name, default, expected)
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(name, f"expected {expected}, got {type_name(value)}")
        if not low <= value <= high:
            self.fail(name, f"expected {expected} within {low}..{high}, got {value}")
        return value

    def optional_integer(
        self, name: str, *, unit: str = "", low: int = 0, high: int = INT_MAX
    ) -> int | None:
        """An integer, or None when absent."""
        if not self.has(name):
            self.take(name)
            return None
        return self.integer(name, unit=unit, low=low, high=high)

    def number(
        self,
        name: str,
        default: float,
        *,
        unit: str = "",
        low: float = 0.0,
        high: float = INT_MAX,
    ) -> float:
        """A finite number within `low..high`."""
        value = self.take(name)
        expected = f"number {unit}".strip()
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"expected {expected}, got {type_name(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            most = "" if high == INT_MAX else f" and at most {high:.0f}"
            self.fail(name, f"expected {expected} of at least {low:g}{most}, got {value}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(name, f"expected boolean, got {type_name(value)}")
        return value

    def array(self, name: str) -> list[Any]:
        """An array, empty when absent."""
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.fail(name, f"expected array, got {type_name(value)}")
        return list(value)

    def strings(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        items = self.array(name)
        for index, item in enumerate(items):
            if not isinstance(item, str):
                self.fail(f"{name}[{index}]", f"expected string, got {type_name(item)}")
            if "\0" in item:
                self.fail(f"{name}[{index}]", "must not contain a NUL character")
        return tuple(items)

    def integers(self, name: str) -> tuple[int, ...]:
        """An array of integers of at least 0."""
        items = self.array(name)
        for index, item in enumerate(items):
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                self.fail(f"{name}[{index}]", f"expected integer >= 0, got {item!r}")
        return tuple(items)

    def mapping(self, name: str) -> dict[str, Any]:
        """A free JSON object, empty when absent; its content is nobody's business here."""
        value = self.take(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.fail(name, f"expected object, got {type_name(value)}")
        return dict(value)

    def string_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings (labels, annotations)."""
        value = self.mapping(name)
        for key, item in value.items():
            if not isinstance(item, str):
                self.fail(f"{name}.{key}", f"expected string, got {type_name(item)}")
        return value

    def child(self, name: str) -> Fields | None:
        """A nested object to read field by field, None when absent."""
        value = self.take(name)
        return None if value is None else Fields(value, self.at(name), self.warnings)

    def need(self, name: str) -> Fields:
        """A nested object that must be there."""
        found = self.child(name)
        if found is None:
            self.fail(name, "required (object)")
        return found

    def children(self, name: str) -> list[Fields]:
        """An array of objects."""
        return [
            Fields(item, f"{self.at(name)}[{index}]", self.warnings)
            for index, item in enumerate(self.array(name))
        ]

    def unknown(self) -> list[str]:
        """Fields that were present but never read."""
        return [name for name in self.value if name not in self._seen]

    def finish(self) -> None:
        """Report the fields that nobody read; they stay in the object's `raw`."""
        for name in self.unknown():
            self.warnings.append(f"{self.at(name)}: unknown field, kept but without effect")
