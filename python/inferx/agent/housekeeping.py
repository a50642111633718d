"""Keeps the pods' folders small: rotates logs and forgets pods that ended long ago.

Must never touch a live pod other than by rotating its log.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from inferx.agent.logs import PodLog

log = logging.getLogger("inferx.agent.housekeeping")

INTERVAL_S = 2.0
ENDED_KEPT_MAX = 32
ENDED_KEPT_MS = 10 * 60 * 1000


class Housekeeper:
    """`live` gives the ids of pods whose folders must stay; `forget` is told what was removed."""

    def __init__(
        self,
        folder: Path,
        live: Callable[[], Collection[str]],
        forget: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._live = live
        self._forget = forget

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                self.round()
            except OSError:
                log.exception("housekeeping of %s failed, trying again", self._folder)

    def round(self) -> None:
        """Rotate what is too long, remove the folders of ended pods that are old or too many."""
        live = self._live()
        ended = []
        for folder in self._folder.iterdir():
            if folder.name in live:
                PodLog(folder).rotate()
            elif folder.is_dir():
                ended.append((folder.stat().st_mtime_ns // 1_000_000, folder))
        ended.sort(reverse=True)
        oldest_ms = time.time_ns() // 1_000_000 - ENDED_KEPT_MS
        for rank, (ended_ms, folder) in enumerate(ended):
            if rank >= ENDED_KEPT_MAX or ended_ms < oldest_ms:
                shutil.rmtree(folder)
                self._forget(folder.name)
