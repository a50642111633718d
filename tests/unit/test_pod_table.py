"""ARCHITECTURE.md shows the pod states as the core has them; UPDATE_DOCS=1 writes them."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

import pytest

from inferx._ext import pod_table, pod_transition

PAGE = Path(__file__).resolve().parent.parent.parent / "ARCHITECTURE.md"
BEGIN = "<!-- pod table: made by tests/unit/test_pod_table.py -->\n"
END = "<!-- end of pod table -->"


def drawn() -> str:
    """The table as Markdown, one line a state."""
    lines = ["| state | events it takes |", "|---|---|"]
    for state, rows in groupby(pod_table(), key=lambda row: row[0]):
        steps = "; ".join(f"{event} → {to}" for _, event, to in rows)
        lines.append(f"| {state} | {steps} |")
    return "\n".join(lines) + "\n"


def test_architecture_shows_the_table() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    shown, after = rest.split(END)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(before + BEGIN + drawn() + END + after)
        return
    assert shown == drawn(), "run UPDATE_DOCS=1 pytest tests/unit/test_pod_table.py"


def test_a_pair_that_is_not_listed_is_an_error() -> None:
    assert pod_transition("Idle", "lease") == "Working"
    with pytest.raises(ValueError, match=r"Standby.*lease"):
        pod_transition("Standby", "lease")
    with pytest.raises(ValueError, match="gossip"):
        pod_transition("Idle", "gossip")
