"""The fence against former schedulers: the highest epoch seen is kept on disk.

Must never accept a lower epoch than one it accepted before, also after a restart.
"""

from __future__ import annotations

from pathlib import Path

from inferx.agent.records import write_atomically
from inferx.errors import StaleEpoch, Unavailable


class EpochGuard:
    """Refuses requests of a scheduler that is no longer the leader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.epoch = int(path.read_text()) if path.exists() else 0

    def check(self, epoch: int) -> None:
        """Accept this epoch or a higher one from now on.

        Raises StaleEpoch for a lower one, and Unavailable while a higher one cannot be kept:
        obeyed without that, the former scheduler would be obeyed again after a restart.
        """
        if epoch < self.epoch:
            raise StaleEpoch(f"epoch {epoch} is over, this node follows epoch {self.epoch}")
        if epoch > self.epoch:
            try:
                write_atomically(self._path, str(epoch), durable=True)
            except OSError as error:
                raise Unavailable(f"node cannot keep epoch {epoch}: {error}") from error
            self.epoch = epoch
