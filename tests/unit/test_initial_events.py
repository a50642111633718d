"""The first events of a watch: one object each, or many for who has asked for it."""

from __future__ import annotations

import pytest

from inferx.rpc import ixmeta_pb2
from inferx.store.informer import Informer
from inferx.store.initial import BATCH_BYTES, BATCH_OBJECTS, initial_events
from tests.helpers.state_client import Client, until

COUNT = 2 * BATCH_OBJECTS + 1
SINGLE = ixmeta_pb2.ListRequestMessage(obj_type="function")
BATCHED = ixmeta_pb2.ListRequestMessage(obj_type="function", batched=True)


def events_of(
    sizes: list[int], request: ixmeta_pb2.ListRequestMessage
) -> tuple[list[list[str]], ixmeta_pb2.WEvent]:
    """The names in each event, for objects with so many bytes of data, and the last event."""
    objects = [ixmeta_pb2.Obj(name=f"f{n}", data="x" * size) for n, size in enumerate(sizes)]
    *events, last = initial_events(objects, 7, request)
    assert all(event.event_type == ixmeta_pb2.ADDED for event in events)
    return [[obj.name for obj in event.batch or (event.obj,)] for event in events], last


def test_who_asks_for_no_batches_gets_one_object_an_event() -> None:
    objects = [ixmeta_pb2.Obj(name=f"f{n}") for n in range(COUNT)]
    *events, last = initial_events(objects, 7, SINGLE)
    assert [event.obj.name for event in events] == [f"f{n}" for n in range(COUNT)]
    assert not any(event.batch for event in events)
    assert (last.event_type, last.obj.kind, last.obj.revision) == (
        ixmeta_pb2.INIT_DONE,
        "function",
        7,
    )


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([10], [1]),
        ([10] * COUNT, [BATCH_OBJECTS, BATCH_OBJECTS, 1]),
        # One that is as large as an object may be travels alone, and keeps its place.
        ([10, 10, BATCH_BYTES, 10], [2, 1, 1]),
        ([BATCH_BYTES // 2 - 100] * 4, [2, 2]),
    ],
)
def test_a_batch_is_limited_in_number_and_size(sizes: list[int], batches: list[int]) -> None:
    names, last = events_of(sizes, BATCHED)
    assert [len(batch) for batch in names] == batches
    assert [name for batch in names for name in batch] == [f"f{n}" for n in range(len(sizes))]
    assert last.event_type == ixmeta_pb2.INIT_DONE


async def test_an_informer_reads_batches(home: Client) -> None:
    function = {"spec": {"image": "i", "resources": {"CPU": 1, "Mem": 2}}}
    names = {f"f{n}" for n in range(COUNT)}
    for name in names:
        await home.create("function", ("t", "n", name), function)
    call = home.stub.Watch(BATCHED)
    assert len((await call.read()).batch) == BATCH_OBJECTS
    call.cancel()
    informer = Informer(home.address, "function")
    await informer.start()
    await until(informer.synced.is_set)
    assert {obj.meta.name for obj in informer.list()} == names
    await informer.stop()
