"""Crash points for tests: this process kills itself after its n-th write to the store.

Must never do anything unless the configuration asks for it.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from inferx.store.protocol import Guard, Op, Store

_log = logging.getLogger(__name__)


class CrashPoint:
    """Counts writes that the store has acknowledged; `after` = 0 never crashes."""

    def __init__(self, after: int) -> None:
        self._left = after

    def written(self) -> None:
        """One more write is done; the process may not survive this call."""
        if self._left == 0:
            return
        self._left -= 1
        if self._left == 0:
            _log.warning("crashing here, as INFERX_CRASH_AFTER_WRITES asks for")
            os.kill(os.getpid(), signal.SIGKILL)


def crashing(store: Store, point: CrashPoint) -> Store:
    """`store`, whose commits count towards the crash point."""
    commit = store.commit

    async def counted(guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        revision = await commit(guards, ops)
        point.written()
        return revision

    store.commit = counted  # type: ignore[method-assign]
    return store
