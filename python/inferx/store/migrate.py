"""The format of what a store holds: written down in it, raised step by step, never lowered.

Must never let a service work on a format that it does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from inferx.errors import ConfigError
from inferx.store.protocol import At, Delete, GuardFailed, Op, Put, Store

FORMAT = 2
_log = logging.getLogger(__name__)

Step = Callable[[Store, str], Awaitable[list[Op]]]


async def migrate(store: Store, prefix: str = "") -> int:
    """Bring the objects under `prefix` to `FORMAT`; the format found before.

    Several services may do this at once: each step is one transaction guarded by the format's own
    key, and who loses looks again. `ConfigError` for a format of a later version.
    """
    root = f"{prefix.rstrip('/')}/registry/"
    key = f"{root}format"
    first: int | None = None
    while True:
        entry = await store.get(key)
        found = _format(entry.value, key) if entry else await _implied(store, root)
        first = found if first is None else first
        if found > FORMAT:
            raise ConfigError(
                f"the store holds objects of format {found}; this version reads up to {FORMAT}"
            )
        if found == FORMAT and entry is not None:
            return first
        ops = await _STEPS[found](store, root) if found < FORMAT else []
        target = min(found + 1, FORMAT)
        try:
            guard = At(key, entry.revision if entry else 0)
            await store.commit([guard], [*ops, Put(key, str(target).encode())])
        except GuardFailed:
            continue
        if found < target:
            _log.info("the store's objects are of format %d now, they were of %d", target, found)


def _format(value: bytes, key: str) -> int:
    text = value.decode("ascii", "replace")
    if not text.isdecimal():
        raise ConfigError(f"{key}: {text!r} is not a format's number")
    return int(text)


async def _implied(store: Store, root: str) -> int:
    """A store without the key is empty, or of the first format, which had no key."""
    found, _ = await store.scan(root)
    return 1 if found else FORMAT


async def _live_objects_without_lease(store: Store, root: str) -> list[Op]:
    """From 2 on the leader's and the nodes' objects live under leases of their writers; those of
    before would say for ever that somebody lives. Living agents register again."""
    ops: list[Op] = []
    for kind in ("scheduler", "node"):
        found, _ = await store.scan(f"{root}{kind}/")
        ops += [Delete(entry.key) for entry in found if not entry.lease]
    # Agents of nodes beyond this register anew over their old objects.
    return ops[:100]


_STEPS: dict[int, Step] = {1: _live_objects_without_lease}
