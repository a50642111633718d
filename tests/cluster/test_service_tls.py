"""A platform whose four services prove to each other who they are; then strangers try each of them.

Every service is a process with its own certificate, and a call goes all the way through them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from inferx.config import ServiceTls
from inferx.errors import Forbidden, InferxError, Unavailable
from inferx.rpc import client, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc, tls
from inferx.rpc import na_pb2 as pb
from inferx.up.settings import Settings, node_document
from tests.helpers.authority import Authority
from tests.helpers.ports import free_ports

from .conftest import ROOT, eventually, function

pytestmark = pytest.mark.xdist_group("service-tls")
SERVICES = {
    "statesvc": "statesvc", "scheduler": "scheduler", "nodeagent": "node:local",
    "gateway": "gateway",
}  # fmt: skip


@dataclass
class Secured:
    """The platform, and the certificates that callers of the test show."""

    authority: Authority
    stranger: Authority
    state: int
    scheduler: int
    agent: int
    agent_state: int
    http: httpx.Client


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("service-tls")
    port, *ports = free_ports(5)
    settings = Settings(folder, port, "1x1000", "process", None, "info", "text", False)
    base, authority = node_document(settings, folder, ports), Authority(folder, "ours")
    processes = {}
    for name, common_name in SERVICES.items():
        files = authority.issue(common_name)
        file = folder / f"{name}.json"
        entries = {"ca": files.ca, "cert": files.cert, "key": files.key}
        file.write_text(json.dumps({**base, "servicetls": entries}))
        with (folder / f"{name}.out").open("w") as out:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "inferx", "run", name, "--config", str(file)],
                stdout=out, stderr=out, cwd=ROOT,
            )  # fmt: skip
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)

    def ready() -> bool:
        for name, process in processes.items():
            assert process.poll() is None, (folder / f"{name}.out").read_text()
        return http.get("/readyz").status_code == 200

    try:
        eventually(ready, 90.0, "the platform is ready")
        yield Secured(authority, Authority(folder, "theirs"), *ports, http)
        # An agent that ends leaves its workers to the next one; here there is none.
        http.delete("/object/function/public/test/f/")
        eventually(lambda: not _workers(http), 30.0, "the workers have ended")
    finally:
        http.close()
        for process in reversed(processes.values()):
            process.terminate()
            process.wait(60)


def test_a_call_goes_through_all_of_them(secured: Secured) -> None:
    for kind, tenant, namespace, name in (
        ("tenant", "system", "system", "public"), ("namespace", "public", "system", "test"),
    ):  # fmt: skip
        manifest = {"type": kind, "tenant": tenant, "namespace": namespace, "name": name}
        made = secured.http.put("/object/", json={**manifest, "object": {"spec": {}}})
        assert made.status_code == 201, made.text
    assert secured.http.put("/object/", json=function("f")).status_code == 201
    answer = secured.http.get("/funccall/public/test/f/pid")
    assert answer.status_code == 200, answer.text
    # The agent's log, which the gateway reads from the agent itself.
    (pod,) = secured.http.get("/pods/public/test/f/").json()
    log = secured.http.get(f"/podlog/public/test/f/1/{pod['name']}")
    assert log.status_code in (200, 404), log.text


async def ask(port: int, files: ServiceTls, stub: Any, verb: str, request: Any) -> Any:
    """One call with a certificate."""
    tls.use(files)
    channel = client.channel(f"127.0.0.1:{port}")
    try:
        return await client.call(getattr(stub(channel), verb), request, 10.0)
    finally:
        tls.use(ServiceTls())
        await channel.close(None)


STATE, LEASES, AGENT = (
    ixmeta_pb2_grpc.IxMetaServiceStub,
    na_pb2_grpc.SchedulerServiceStub,
    na_pb2_grpc.NodeAgentServiceStub,
)
LIST = ixmeta_pb2.ListRequestMessage(obj_type="function")
# (service, stub, verb, request)
CALLS: list[tuple[str, Any, str, Any]] = [
    ("state", STATE, "List", LIST),
    ("state", STATE, "Version", ixmeta_pb2.VersionRequestMessage()),
    ("scheduler", LEASES, "ConnectScheduler", pb.ConnectReq(gateway_id=666)),
    ("scheduler", LEASES, "LeaseWorker", pb.LeaseWorkerReq(
        tenant="public", namespace="test", funcname="f", gateway_id=666, deadline_ms=5_000)),
    ("scheduler", LEASES, "ReturnWorker", pb.ReturnWorkerReq(lease_id="1", id="x")),
    ("scheduler", LEASES, "RefreshGateway", pb.RefreshGatewayReq(gateway_id=666)),
    ("scheduler", LEASES, "KillPod", pb.KillPodReq(id="x")),
    ("agent", AGENT, "CreateFuncPod", pb.CreateFuncPodReq(
        tenant="public", namespace="test", funcname="f", fprevision=1, id="evil", epoch=1 << 40)),
    ("agent", AGENT, "TerminatePod", pb.TerminatePodReq(id="x", epoch=1 << 40)),
    ("agent", AGENT, "ResumePod", pb.ResumePodReq(id="x", epoch=1 << 40)),
    ("agent", AGENT, "ReadPodLog", pb.ReadPodLogReq(id="x")),
    ("agent_state", STATE, "List", ixmeta_pb2.ListRequestMessage(obj_type="pod")),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=[f"{each[0]}-{each[2]}" for each in CALLS])
async def test_strangers_and_other_nodes_are_refused(
    secured: Secured, call: tuple[str, Any, str, Any]
) -> None:
    service, stub, verb, request = call
    port = getattr(secured, service)
    before = await asyncio.to_thread(_everything, secured)
    ours = secured.authority
    nobody = (
        secured.stranger.issue("scheduler"),  # of an authority that we do not know
        ServiceTls(),  # in clear
    )
    for files in nobody:
        with pytest.raises(Unavailable):
            await ask(port, files, stub, verb, request)
    names = ["admin"]
    if verb != "Version":
        names.append("node:other")
    for name in names:
        with pytest.raises(Forbidden):
            await ask(port, ours.issue(name), stub, verb, request)
    assert await asyncio.to_thread(_everything, secured) == before


async def test_each_service_may_only_do_its_part(secured: Secured) -> None:
    ours = secured.authority
    for name, service, stub, verb, request in (
        ("gateway", "agent", AGENT, "TerminatePod", pb.TerminatePodReq(id="x")),
        ("statesvc", "scheduler", LEASES, "KillPod", pb.KillPodReq(id="x")),
        ("scheduler", "scheduler", LEASES, "KillPod", pb.KillPodReq(id="x")),
        ("node:local", "state", STATE, "List", LIST),
    ):
        with pytest.raises(Forbidden):
            await ask(getattr(secured, service), ours.issue(name), stub, verb, request)
    with pytest.raises(InferxError) as refused:
        await ask(secured.scheduler, ours.issue("gateway"), LEASES, "ReturnWorker",
                  pb.ReturnWorkerReq(lease_id="1", id="x"))  # fmt: skip
    assert not isinstance(refused.value, Forbidden | Unavailable), "a gateway is let in"


def _workers(http: httpx.Client) -> list[Any]:
    pods = http.get("/pods/").json()
    return [pod for pod in pods if pod["object"]["status"]["state"] not in ("Terminated", "Failed")]


def _everything(secured: Secured) -> Any:
    """What a stranger must not have changed."""
    pods = secured.http.get("/pods/").json()
    return [(pod["name"], pod["object"]["spec"]) for pod in pods]
