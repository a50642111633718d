"""Certificates between services: strangers are refused, and each speaks for itself only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferx import config, statesvc
from inferx._ext import SchedulerCore
from inferx.config import ServiceTls
from inferx.errors import ConfigError, Forbidden, InferxError, Unavailable
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc, rights, tls
from inferx.rpc import na_pb2 as pb
from tests.helpers.authority import Authority
from tests.helpers.ports import free_ports

NODE = {"spec": {"address": "127.0.0.1", "podmgr_port": 1, "state_port": 1}}


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    yield Authority(tmp_path, "ours")
    tls.use(ServiceTls())


@pytest_asyncio.fixture
async def port(authority: Authority, tmp_path: Path) -> AsyncIterator[int]:
    """A state service with certificates."""
    tls.use(authority.issue("statesvc"))
    (port,) = free_ports(1)
    found = replace(config.load(None, {}), data_dir=tmp_path / "data", statesvc_port=port)
    service = await statesvc.start(found)
    yield port
    await service.stop(0)


async def ask(port: int, files: ServiceTls, verb: str, request: Any) -> Any:
    """One call to the state service with a certificate."""
    tls.use(files)
    channel = client.channel(f"127.0.0.1:{port}")
    stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        return await client.call(getattr(stub, verb), request, 5.0)
    finally:
        await channel.close(None)


def create(kind: str, name: str, raw: Any = None) -> ixmeta_pb2.CreateRequestMessage:
    manifest = {"type": kind, "tenant": "system", "namespace": "system", "name": name}
    return ixmeta_pb2.CreateRequestMessage(
        obj=convert.message_of({**manifest, "object": raw or {"spec": {}}})
    )


async def test_strangers_are_refused(port: int, authority: Authority, tmp_path: Path) -> None:
    version = ixmeta_pb2.VersionRequestMessage()
    assert (await ask(port, authority.issue("gateway"), "Version", version)).version
    for files in (
        Authority(tmp_path, "theirs").issue("gateway"),
        replace(Authority(tmp_path, "mixed").issue("gateway"), ca=authority.issue("x").ca),
        ServiceTls(),
    ):
        with pytest.raises(Unavailable):
            await ask(port, files, "Version", version)
    with pytest.raises(Forbidden, match="none of a service"):
        await ask(port, authority.issue("somebody"), "Version", version)


async def test_forged_node_reports_are_refused(port: int, authority: Authority) -> None:
    n1 = authority.issue("node:n1")
    await ask(port, n1, "Create", create("node", "n1", NODE))
    read = ixmeta_pb2.ListRequestMessage(obj_type="node")
    before = await ask(port, n1, "List", read)
    for files, verb, request, what in (
        (n1, "Create", create("node", "n2", NODE), "may not speak for node n2"),
        (n1, "Create", create("node", "n10", NODE), "may not speak for node n10"),
        (n1, "Create", create("tenant", "evil"), "node may not write"),
        (n1, "List", ixmeta_pb2.ListRequestMessage(obj_type="apikey"), "may not read"),
        (n1, "List", ixmeta_pb2.ListRequestMessage(obj_type="function"), "may not read"),
        (authority.issue("node:"), "List", read, "none of a service"),
        (authority.issue("gateway"), "Create", create("node", "n3", NODE), "may not write"),
        (authority.issue("gateway"), "Delete", ixmeta_pb2.DeleteRequestMessage(
            obj_type="node", tenant="system", namespace="system", name="n1"), "may not write"),
        (authority.issue("scheduler"), "Create", create("tenant", "evil"), "may not write"),
    ):  # fmt: skip
        with pytest.raises(Forbidden, match=what):
            await ask(port, files, verb, request)
    assert await ask(port, n1, "List", read) == before
    await ask(port, authority.issue("gateway"), "Create", create("tenant", "t"))


def test_every_method_has_its_callers() -> None:
    """Every method of every service, with each name: only those that are meant get through."""
    services = {
        "na.SchedulerService": na_pb2_grpc.SchedulerServiceServicer,
        "na.NodeAgentService": na_pb2_grpc.NodeAgentServiceServicer,
    }
    allowed = {"na.SchedulerService": {"gateway", "operator"},
               "na.NodeAgentService": {"scheduler", "operator"}}  # fmt: skip
    for service, servicer in services.items():
        for verb in [name for name in vars(servicer) if name[0].isupper()]:
            expected = allowed[service] | ({"gateway"} if "PodLog" in verb else set())
            for name in ("gateway", "scheduler", "statesvc", "operator", "node:n1", "admin", ""):
                try:
                    rights.check(f"/{service}/{verb}", pb.ConnectReq(), [name])
                    let_in = True
                except Forbidden:
                    let_in = False
                assert let_in == (name in expected), f"{name} {verb}"
    for names in ([], ["gateway", "gateway"]):
        with pytest.raises(Forbidden):
            rights.check("/ixmeta.IxMetaService/Version", None, names)
    with pytest.raises(Forbidden):
        rights.check("/other.Service/Do", None, ["operator"])


async def test_new_certificates_are_taken_up_without_a_restart(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    version = ixmeta_pb2.VersionRequestMessage()
    newer = Authority(tmp_path, "newer")
    gateway, server = newer.issue("gateway"), newer.issue("statesvc")
    with pytest.raises(Unavailable):
        await ask(port, gateway, "Version", version)
    old = authority.issue("statesvc")  # writes over the files that the server uses
    for source, target in zip(
        (server.cert, server.key, server.ca), (old.cert, old.key, old.ca), strict=True
    ):
        os.replace(source, target)
    (newer.folder / "ca.pem").write_bytes(await asyncio.to_thread(Path(old.ca).read_bytes))
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await ask(port, gateway, "Version", version)).version
                return
            except InferxError:
                await asyncio.sleep(0.1)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"servicetls\.ca: .*nothing"):
        tls.use(ServiceTls(str(tmp_path / "nothing"), "x", "y"))
    tls.use(ServiceTls())
    document = tmp_path / "node.json"
    document.write_text('{"servicetls": {"ca": "a", "cert": "b"}}')
    with pytest.raises(ConfigError, match=r"servicetls\.key"):
        config.load(document, {})


async def test_a_lease_that_was_given_back_is_not_taken_again(tmp_path: Path) -> None:
    core = SchedulerCore("ab")
    core.connect(0, 7)
    for lease_id in (0, 1, 2**40):
        assert not core.give_back(1, lease_id)
        assert not core.announce(1, 7, lease_id, "ab0000000001", 5)
    assert not core.announce(1, 8, 1, "ab0000000001", 5), "of a gateway that is not connected"
    assert core.stats()["leases"] == 0
