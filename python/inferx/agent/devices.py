"""What a pod asks of its devices beyond counting: free memory that has to come, and the driver.

Must never take room that the ledger has not promised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from inferx._ext import DeviceError
from inferx.agent.driver import Driver
from inferx.agent.ledger import Ledger
from inferx.errors import InvalidState, NoCapacity, NotSupported

DRIVER_FREES_WITHIN_S = 10.0
DRIVER_POLL_S = 0.1


async def take_when_free(
    ledger: Ledger, pod_id: str, devices: Sequence[int], ending: asyncio.Event
) -> None:
    """Take the promised VRAM. A driver frees memory some time after its process has ended."""
    deadline = time.monotonic() + DRIVER_FREES_WITHIN_S
    while True:
        try:
            ledger.take(pod_id)
            return
        except NoCapacity:
            if not ledger.real_devices(devices) or time.monotonic() > deadline or ending.is_set():
                raise
        await asyncio.sleep(DRIVER_POLL_S)


def driver_of(ledger: Ledger, pod_id: str, devices: Sequence[int]) -> Driver | None:
    """What takes a pod's worker off its GPUs; None where they are simulated.

    Raises InvalidState when the driver cannot be used.
    """
    real = ledger.real_devices(devices)
    if not real:
        return None
    try:
        driver = ledger.driver(real)
        driver.check()
        return driver
    except (DeviceError, NotSupported) as error:
        raise InvalidState(
            f"pod {pod_id} cannot be parked: the driver of its GPUs {real} cannot be used:"
            f" {error.args[0]}; terminate it instead"
        ) from error
