"""How results are printed: an aligned table for people, JSON or YAML for programs.

Must never decide what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import yaml

Row = Sequence[object]


def emit(output: str, value: Any, headers: Row, rows: Sequence[Row], empty: str) -> None:
    """Prints `value` as JSON or YAML, or `rows` as a table (`empty` on stderr without rows)."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)
    elif rows:
        click.echo(table(headers, rows))
    else:
        click.echo(empty, err=True)


def table(headers: Row, rows: Sequence[Row]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def age(milliseconds: float) -> str:
    """A duration in the largest unit that fits: 850 ms, 12 s, 5 min, 3 h, 2 d."""
    if milliseconds < 1000:
        return f"{max(0, milliseconds):.0f} ms"
    seconds = milliseconds / 1000
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
