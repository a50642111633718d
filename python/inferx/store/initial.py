"""How a watch begins: the objects that there are, and the mark behind them.

Must never send many objects in one event to a watcher that has not asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inferx.rpc import ixmeta_pb2

# Each event has its price on either side, which many share; a large one keeps others waiting.
BATCH_OBJECTS = 64
BATCH_BYTES = 1 << 20  # more only for a single object, of which this is the most


def initial_events(
    objects: Iterable[ixmeta_pb2.Obj], revision: int, request: ixmeta_pb2.ListRequestMessage
) -> Iterator[ixmeta_pb2.WEvent]:
    """Objects as of `revision` as the first events of a watch, INIT_DONE the last of them."""
    size = BATCH_OBJECTS if request.batched else 1
    for batch in _batches(objects, size):
        if len(batch) == 1:
            yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.ADDED, obj=batch[0])
        else:
            yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.ADDED, batch=batch)
    done = ixmeta_pb2.Obj(kind=request.obj_type, revision=revision)
    yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.INIT_DONE, obj=done)


def _batches(objects: Iterable[ixmeta_pb2.Obj], size: int) -> Iterator[list[ixmeta_pb2.Obj]]:
    batch: list[ixmeta_pb2.Obj] = []
    used = 0
    for obj in objects:
        length = obj.ByteSize()
        if batch and (len(batch) == size or used + length > BATCH_BYTES):
            yield batch
            batch, used = [], 0
        batch.append(obj)
        used += length
    if batch:
        yield batch
