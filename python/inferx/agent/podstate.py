"""A pod's state and the one place where it changes: table, time, file, report.

Must never start, stop or wait for anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferx._ext import pod_transition
from inferx.agent import records
from inferx.agent.runtimes.protocol import Worker
from inferx.errors import InvalidState

log = logging.getLogger("inferx.agent.pod")

TERMINAL = frozenset({"Terminated", "Failed"})


class PodState:
    """The record of a pod, moved by the events of the pod table; `report` hears of each change,
    `gpu` tells what is to be recorded of its GPU memory."""

    def __init__(
        self,
        folder: Path,
        record: records.Record,
        report: Callable[[], None],
        gpu: Callable[[], dict[str, Any]],
    ) -> None:
        self.record = record
        self._gpu = gpu
        self.worker: Worker | None = None
        self._folder = folder
        self._report = report

    @property
    def name(self) -> str:
        """The state's name in the table."""
        return self.record.state

    def move(self, event: str, reason: str) -> None:
        """Take one step of the table; raises InvalidState for one that is not in it."""
        self.pass_through(event)
        self.record.since_ms = time.time_ns() // 1_000_000
        self.note(reason)

    def pass_through(self, event: str) -> None:
        """Take a step that nobody needs to hear of, because the next one follows at once."""
        try:
            self.record.state = pod_transition(self.record.state, event)
        except ValueError as error:
            raise InvalidState(f"pod {self.record.key.id}: {error}") from error

    def fail(self, reason: str) -> None:
        """End as failed; a pod that is already ending only gets the reason."""
        self.record.error = reason
        log.warning("pod %s failed: %s", self.record.key.id, reason)
        if self.name == "Terminating":
            self.note(reason)
        else:
            self.move("fail", reason)

    def note(self, reason: str) -> None:
        """Keep the state and say something about it; limits that are not enforced are added."""
        notes = self.worker.notes if self.worker is not None else ()
        self.record.reason = "; ".join(part for part in (reason, *notes) if part)
        if self.worker is not None:
            self.record.worker = self.worker.record
            self.record.gpu = self._gpu()
        try:
            records.save(self._folder, self.record)
        except OSError as error:
            # A full disk must not end workers; an older record still leads to the process.
            log.error("pod %s: its record cannot be written: %s", self.record.key.id, error)
        first_line = self.record.reason.partition("\n")[0]
        log.info("pod %s %s %s", self.record.key.id, self.name, first_line)
        self._report()
