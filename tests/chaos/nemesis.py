"""The faults, chosen by a seed: who is killed, frozen, cut off or slowed, and for how long.

Must never begin a fault before the platform has recovered from the one before: then no single
fault could be blamed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from inferx.agent.runtimes.processes import kill_each
from inferx.store.etcd import EtcdStore
from inferx.store.protocol import Put
from tests.chaos.cluster import PORTS, Cluster
from tests.chaos.processes import Service, workers

PAUSE_S = 4.0  # past the leader's lease of two seconds
FREEZE_S = 11.0  # past the ten seconds of a gateway's leases
UPGRADE = "rolling_upgrade"
RECOVERY_S = 60.0


@dataclass
class Fault:
    """One fault and what came after it (monotonic seconds); `deposed` when it hit the leading
    scheduler and another one leads since."""

    kind: str
    target: str
    begun: float
    ended: float = 0.0
    recovered_s: float = 0.0
    deposed: bool = False
    gateways_killed: list[str] = field(default_factory=list)


class Nemesis:
    """`faults` is its history."""

    def __init__(self, cluster: Cluster, seed: int, say: Callable[[str], None]) -> None:
        self.faults: list[Fault] = []
        self._cluster = cluster
        self._random = random.Random(seed)
        self._say = say
        self._kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "kill_leader": self._kill_leader,
            "kill_standby": self._kill_standby,
            "pause_leader": self._pause_leader,
            "kill_statesvc": lambda: self._kill_one("statesvc"),
            "kill_gateway": lambda: self._kill_one("gateway"),
            "kill_agent": lambda: self._kill_one("nodeagent"),
            "node_death": self._node_death,
            "kill_worker": self._kill_worker,
            "hang_worker": self._hang_worker,
            "kill_etcd": self._kill_etcd,
            "compaction_in_a_gap": self._compaction,
            "cut_state_from_etcd": lambda: self._cut("statesvc", ("etcd",)),
            "cut_scheduler_from_state": lambda: self._cut("scheduler", ("statesvc0", "statesvc1")),
            "cut_gateway_from_state": lambda: self._cut("gateway", ("statesvc0", "statesvc1")),
            "slow_etcd": self._slow,
            "pause_gateway": self._pause_gateway,
            "cut_gateways_from_leader": self._cut_leader,
            "pause_postgres": self._pause_postgres,
            UPGRADE: self._upgrade,
        }

    async def run(self, count: int) -> None:
        """So many faults; every kind comes once before any comes again."""
        if all(node.isolated for node in self._cluster.nodes):
            self._kinds["cut_node"] = self._cut_node
        if all(disk.mounted for disk in self._cluster.disks.values()):
            self._kinds["disk_full"] = self._disk_full
        bag: list[str] = []
        for number in range(count):
            if not bag:
                bag = sorted(self._kinds)
                self._random.shuffle(bag)
            kind = bag.pop()
            leader, _ = await self._cluster.leader()
            fault = Fault(kind, "", time.monotonic())
            self.faults.append(fault)
            fault.target = await self._kinds[kind]()
            fault.ended = time.monotonic()
            supervisor = asyncio.create_task(self._cluster.supervise())
            try:
                await self._cluster.answers(RECOVERY_S)
                await self._cluster.listens("scheduler")  # without a standby there is no failover
            finally:
                supervisor.cancel()
            fault.recovered_s = time.monotonic() - fault.ended
            leads_now, _ = await self._cluster.leader()
            fault.deposed = fault.target == leader.name != leads_now.name
            self._say(
                f"{number + 1}/{count} {kind} {fault.target}: {fault.ended - fault.begun:.1f} s, "
                f"recovered in {fault.recovered_s:.2f} s"
            )
            await asyncio.sleep(self._random.uniform(0.1, 0.5))

    def counts(self) -> dict[str, int]:
        """How often each kind."""
        return dict(sorted(Counter(fault.kind for fault in self.faults).items()))

    # ---- kinds ----

    async def _kill(self, service: Service) -> str:
        service.kill()
        await asyncio.sleep(self._random.uniform(0.2, 1.0))
        return service.name

    async def _kill_leader(self) -> str:
        leader, _ = await self._cluster.leader()
        name = await self._kill(leader)
        await asyncio.sleep(3.0)  # the standby leads before its predecessor is back
        return name

    async def _kill_standby(self) -> str:
        return await self._kill((await self._cluster.leader())[1])

    async def _kill_one(self, kind: str) -> str:
        service = self._random.choice(self._cluster.of(kind))
        if kind == "gateway":
            self.faults[-1].gateways_killed.append(service.name)
        return await self._kill(service)

    async def _pause_leader(self) -> str:
        leader, _ = await self._cluster.leader()
        leader.send(signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        leader.send(signal.SIGCONT)
        await asyncio.sleep(0.5)
        return leader.name

    async def _pause_gateway(self) -> str:
        """It wakes up with leases that others have by then, and with calls that wait for it."""
        gateway = self._random.choice(self._cluster.of("gateway"))
        gateway.send(signal.SIGSTOP)
        await asyncio.sleep(FREEZE_S)
        gateway.send(signal.SIGCONT)
        return gateway.name

    async def _cut_leader(self) -> str:
        """No gateway reaches the leader, which goes on leading; at times past their leases."""
        leader, _ = await self._cluster.leader()
        return await self._cut_ways([("gateways", leader.name)], leader.name, 12.0)

    async def _pause_postgres(self) -> str:
        """It takes connections and answers nothing; calls go on, and no row of theirs is lost."""
        self._cluster.postgres.pause()
        await asyncio.sleep(self._random.uniform(1.0, 5.0))
        self._cluster.postgres.resume()
        return "postgres"

    async def _upgrade(self) -> str:
        """Each service of a kind is ended in order and started anew, one after the other; the
        checker takes no failed call for that."""
        kind = self._random.choice(sorted(PORTS))
        for service in self._cluster.of(kind):
            await service.stop()
            service.start()
            await self._cluster.listens(kind)
        return kind

    async def _node_death(self) -> str:
        """The agent and all its workers at once, as when a machine loses power."""
        service = self._random.choice(self._cluster.of("nodeagent"))
        service.kill()
        kill_each(workers(service))
        await asyncio.sleep(6.0)
        return service.name

    async def _kill_worker(self) -> str:
        return self._signal_worker(signal.SIGKILL)

    async def _hang_worker(self) -> str:
        name = self._signal_worker(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        if name:
            _kill(int(name), signal.SIGCONT)
        return name

    def _signal_worker(self, number: signal.Signals) -> str:
        agents = self._cluster.of("nodeagent")
        pids = [pid for agent in agents for pid in workers(agent) if not _stopped(pid)]
        if not pids:
            return ""
        pid = self._random.choice(sorted(pids))
        return str(pid) if _kill(pid, number) else ""

    async def _kill_etcd(self) -> str:
        await asyncio.to_thread(self._cluster.etcd.kill)
        await asyncio.sleep(self._random.uniform(0.1, 1.0))
        await asyncio.to_thread(self._cluster.etcd.start)
        return "etcd"

    async def _compaction(self) -> str:
        """Everything up to now is compacted while a state service cannot see it."""
        name = self._random.choice(["statesvc0", "statesvc1"])
        proxies = self._cluster.ways[name, "etcd"]
        for proxy in proxies:
            proxy.cut()

        async def write(store: EtcdStore) -> int:
            puts = [[Put("/nemesis", str(number).encode())] for number in range(3)]
            return [await store.commit((), put) for put in puts][-1]

        revision = await self._cluster.with_store(write)
        await asyncio.sleep(1.0)
        await self._cluster.with_store(lambda store: store.compact(revision))
        for proxy in proxies:
            proxy.heal()
        return name

    async def _cut(self, kind: str, others: tuple[str, ...]) -> str:
        service = self._random.choice(self._cluster.of(kind))
        return await self._cut_ways([(service.name, other) for other in others], service.name, 5.0)

    async def _cut_ways(self, ways: list[tuple[str, str]], name: str, longest_s: float) -> str:
        proxies = [proxy for way in ways for proxy in self._cluster.ways[way]]
        for proxy in proxies:
            proxy.cut()
        await asyncio.sleep(self._random.uniform(1.0, longest_s))
        for proxy in proxies:
            proxy.heal()
        return name

    async def _cut_node(self) -> str:
        node = self._random.choice(self._cluster.nodes)
        node.cut()
        await asyncio.sleep(self._random.uniform(1.0, 8.0))
        node.heal()
        return f"node{node.number}"

    async def _disk_full(self) -> str:
        """A node has no byte left for records and logs, and its agent dies at that moment."""
        service = self._random.choice(self._cluster.of("nodeagent"))
        disk = self._cluster.disks[service.name]
        disk.fill()
        await asyncio.sleep(self._random.uniform(1.0, 3.0))
        if self._random.random() < 0.5:
            service.kill()
        disk.empty()
        return service.name

    async def _slow(self) -> str:
        proxies = [p for (_, to), way in self._cluster.ways.items() if to == "etcd" for p in way]
        for proxy in proxies:
            proxy.delay_s = self._random.uniform(0.02, 0.15)
        await asyncio.sleep(3.0)
        for proxy in proxies:
            proxy.delay_s = 0.0
        return "etcd"


def _kill(pid: int, number: signal.Signals) -> bool:
    """Whether the worker was there; its agent may have ended it at any moment."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"
    except OSError:
        return True
