"""Informers: a live copy that survives broken streams, restarts and lost events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inferx import config, statesvc
from inferx.domain import codec
from inferx.domain.meta import Key
from inferx.errors import BadRequest, Compacted
from inferx.rpc import convert, ixmeta_pb2_grpc, server
from inferx.store.informer import SLICE, Informer
from inferx.store.view import ObjectView
from tests.helpers.state_client import Client, until

FUNCTION = {"spec": {"image": "i", "resources": {"CPU": 1, "Mem": 2}}}
F: Key = ("t", "n", "f")


class Seen:
    """What a subscriber was told."""

    def __init__(self, informer: Informer) -> None:
        self.events: list[tuple[str, str]] = []
        informer.subscribe(lambda event, obj: self.events.append((event, obj.meta.name)))


async def test_an_informer_follows(home: Client) -> None:
    await home.create("function", F, FUNCTION)
    informer = Informer(home.address, "function", "t")
    seen = Seen(informer)
    await informer.start()
    async with asyncio.timeout(20):
        await informer.synced.wait()
    assert [obj.key for obj in informer.list()] == [F]
    revision = await home.update("function", F, FUNCTION)
    await home.create("function", ("t", "n", "g"), FUNCTION)
    await home.delete("function", F)
    await until(lambda: len(seen.events) == 4)
    assert seen.events == [("added", "f"), ("modified", "f"), ("added", "g"), ("deleted", "f")]
    assert informer.get(F) is None
    late = Seen(informer)
    assert late.events == [("added", "g")]
    found = informer.get(("t", "n", "g"))
    assert found is not None
    assert found.revision > revision
    await informer.stop()


async def test_a_subscriber_is_told_in_slices_what_there_is_and_what_comes_meanwhile() -> None:
    """Everything once, as it is when its turn comes, while the loop runs on."""
    informer = Informer("127.0.0.1:1", "function")

    def apply(name: str, revision: int) -> None:
        obj = codec.new("function", ("t", "n", name), FUNCTION, revision=revision)
        informer._apply(convert.to_proto(obj), live=True)

    for number in range(3 * SLICE):
        apply(f"f{number}", 1)
    told: list[tuple[str, str, int]] = []
    subscribing = asyncio.create_task(
        informer.subscribe_in_slices(
            lambda event, obj: told.append((event, obj.meta.name, obj.revision))
        )
    )
    await asyncio.sleep(0)
    assert len(told) == SLICE
    first = told[0][1]
    changed, gone, back = [
        f"f{number}" for number in range(3 * SLICE) if ("added", f"f{number}", 1) not in told
    ][:3]
    apply(changed, 2)
    informer._forget(("t", "n", gone))
    informer._forget(("t", "n", back))
    apply(back, 3)
    apply("new", 1)
    apply(first, 2)
    await subscribing
    assert told[SLICE : SLICE + 3] == [
        ("added", back, 3),
        ("added", "new", 1),
        ("modified", first, 2),
    ]
    assert ("added", changed, 2) in told
    assert gone not in [name for _, name, _ in told]
    added = [name for event, name, _ in told if event == "added"]
    assert len(added) == len(set(added)) == 3 * SLICE  # one has gone, one has come
    apply(changed, 3)
    assert told[-1] == ("modified", changed, 3)
    await informer.stop()


async def test_an_informer_outlives_the_service(settings: config.NodeConfig) -> None:
    """What changed while the stream was broken is made up for, deletes included."""
    running = await statesvc.start(settings)
    settings = replace(settings, statesvc_port=running.port)
    api = Client(running.port)
    await api.create("tenant", ("system", "system", "keep"))
    await api.create("tenant", ("system", "system", "drop"))
    informer = Informer(api.address, "tenant")
    seen = Seen(informer)
    await informer.start()
    await until(informer.synced.is_set)
    await running.stop(0)
    await until(lambda: not informer.connected)
    assert len(informer.list()) == 3  # a broken stream empties nothing
    running = await statesvc.start(replace(settings, statesvc_port=0))
    other = Client(running.port)
    await other.delete("tenant", ("system", "system", "drop"))
    await other.create("tenant", ("system", "system", "new"))
    await other.close()
    await running.stop(0)
    running = await statesvc.start(settings)
    await until(lambda: informer.connected)
    assert {obj.meta.name for obj in informer.list()} == {"system", "keep", "new"}
    assert seen.events[3:] == [("added", "new"), ("deleted", "drop")]
    await informer.stop()
    await api.close()
    await running.stop(0)


async def test_an_informer_mends_what_its_watch_lost(home: Client) -> None:
    for name in ("a", "b"):
        await home.create("function", ("t", "n", name), FUNCTION)
    informer = Informer(home.address, "function", verify_s=0.05)
    await informer.start()
    await until(informer.synced.is_set)
    lost = informer._objects.pop(("t", "n", "a"))
    ghost = codec.new("function", ("t", "n", "ghost"), FUNCTION, revision=1)
    informer._objects[ghost.key] = ghost
    await until(lambda: informer.repairs == 2)
    assert {obj.key for obj in informer.list()} == {lost.key, ("t", "n", "b")}
    await informer.stop()


async def test_an_informer_follows_a_view() -> None:
    """Agents and the scheduler show their pods by an `ObjectView`."""
    view = ObjectView(kinds=("pod",))
    add: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
    started = await server.serve("127.0.0.1:0", [lambda target: add(view, target)])
    pod: dict[str, Any] = {"spec": {"funcname": "f", "fprevision": 1}, "status": {"state": "Init"}}
    view.put(codec.new("pod", ("t", "n", "p1"), pod))
    informer = Informer(f"127.0.0.1:{started.port}", "pod")
    seen = Seen(informer)
    await informer.start()
    await until(informer.synced.is_set)
    pod["status"] = {"state": "Ready"}
    ready = codec.new("pod", ("t", "n", "p1"), pod)
    view.put(ready)
    view.put(ready)  # nothing new to say
    await until(lambda: len(seen.events) == 2)
    found = informer.get(("t", "n", "p1"))
    assert found is not None
    assert found.spec.status.state == "Ready"
    view.remove("pod", ("t", "n", "p1"))
    await until(lambda: len(seen.events) == 3)
    assert seen.events == [("added", "p1"), ("modified", "p1"), ("deleted", "p1")]
    api = Client(started.port)
    with pytest.raises(Compacted):
        await api.watch(1, "pod", revision=5)
    with pytest.raises(BadRequest):
        await api.names("function")
    await api.close()
    await informer.stop()
    await started.stop(0)
