"""What the agent must remember of a pod to find it again after its own restart: pod.json.

Must never be half written: a record is the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inferx.agent.spec import PodKey

log = logging.getLogger("inferx.agent.records")

FILE = "pod.json"


@dataclass
class Record:
    """One pod as it was last known; `funcspec` and `alloc` are the request's JSON texts."""

    key: PodKey
    funcspec: str
    alloc: str
    port: int
    state: str
    since_ms: int
    ip: str = ""  # the worker's address, once it has one
    start: str = "cold"
    purpose: str = "serve"  # "snapshot": it ends once its snapshot is taken
    save: bool | None = None  # may its worker be saved? None = as the agent thinks fit
    reason: str = ""
    error: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    gpu: Mapping[str, Any] = field(default_factory=dict)  # see GpuSide.record
    tier: str = ""  # where its GPU memory came from

    @property
    def came_from(self) -> str:
        """The tier as a part of the pod's reason."""
        return f"GPU memory from tier {self.tier}" if self.tier else ""


def save(folder: Path, record: Record) -> None:
    """Write the record into the pod's folder."""
    write_atomically(folder / FILE, json.dumps(asdict(record)))


def load(folder: Path) -> Record | None:
    """The record of a pod's folder; None (and a warning) when there is no usable one."""
    try:
        raw = json.loads((folder / FILE).read_text())
        return Record(**{**raw, "key": PodKey(**raw["key"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("no usable record in %s: %s", folder, error)
        return None


def write_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace a file in one step, mode 0600; `durable` also survives a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
