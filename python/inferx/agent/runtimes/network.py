"""A network namespace with an address of its own for each container of this machine.

Must never touch a namespace or link that is not claimed by the pod it is asked about.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inferx.agent.runtimes import tools
from inferx.errors import ConfigError, NoCapacity

CLAIMS = Path("/run/inferx/net")
NAMESPACES = Path("/run/netns")
LINKS = Path("/sys/class/net")
_LINK_PREFIX = "ifx"
_PREFIX_BITS = 30  # one address for the host's end, one for the container's
# Behind every route to a container: an address whose container is gone is refused here and at once,
# instead of being asked for somewhere beyond this machine.
_NOWHERE_METRIC = 4_000_000_000


@dataclass(frozen=True)
class PodNetwork:
    """Number `index` of this machine: the host's end of the link has the address `gateway`."""

    index: int
    address: str
    gateway: str

    @property
    def namespace(self) -> str:
        """The namespace's name, as `ip netns` knows it."""
        return f"inferx-{self.index}"

    @property
    def path(self) -> Path:
        """The namespace as a file."""
        return NAMESPACES / self.namespace

    @property
    def link(self) -> str:
        """The host's end of the link."""
        return f"{_LINK_PREFIX}{self.index}"


class PodNetworks:
    """Hands out the /30 networks of `cidr`. Claims are files that all agents of a machine share:
    a file names the folder of the pod whose network it is."""

    def __init__(self, cidr: str, claims: Path = CLAIMS) -> None:
        self._network = ipaddress.IPv4Network(cidr)
        self._claims = claims
        self._checked = False

    async def create(self, owner: Path) -> PodNetwork:
        """A new namespace, claimed by the pod's folder, with its link up."""
        if not self._checked:
            await self._check_routes()
        network = self._describe(await asyncio.to_thread(self._claim, owner))
        try:
            await tools.run(["ip", "-batch", "-"], text=self._nowhere() + _host_side(network))
            await tools.run(["ip", "-n", network.namespace, "-batch", "-"], text=_inside(network))
        except BaseException:
            await self.remove(network)
            raise
        return network

    async def remove(self, network: PodNetwork) -> None:
        """Remove the link and the namespace, then the claim; what is gone already is fine."""
        lines = []
        if (LINKS / network.link).exists():
            lines.append(f"link del {network.link}")
        if network.path.exists():
            lines.append(f"netns del {network.namespace}")
        if lines:
            await tools.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
        (self._claims / str(network.index)).unlink(missing_ok=True)

    async def close(self) -> None:
        """With no container left on this machine, nothing of its network is left either."""
        if self._claims.is_dir() and not any(self._claims.glob("[0-9]*")):
            where = ["type", "unreachable", "exact", str(self._network)]
            await tools.run(["ip", "-4", "route", "flush", *where])

    def of(self, owner: Path) -> list[PodNetwork]:
        """The networks that a pod's folder has claimed."""
        if not self._claims.is_dir():
            return []
        return [
            self._describe(int(claim.name))
            for claim in self._claims.iterdir()
            if claim.name.isdigit() and _owner(claim) == str(owner)
        ]

    def _nowhere(self) -> str:
        return f"route replace unreachable {self._network} metric {_NOWHERE_METRIC}\n"

    def _describe(self, index: int) -> PodNetwork:
        base = self._network.network_address + index * 4
        return PodNetwork(index, address=str(base + 2), gateway=str(base + 1))

    def _claim(self, owner: Path) -> int:
        self._claims.mkdir(parents=True, exist_ok=True, mode=0o700)
        count = 1 << (_PREFIX_BITS - self._network.prefixlen)
        # The file appears with its content, or not at all: a link to one that is complete.
        descriptor, complete = tempfile.mkstemp(dir=self._claims, prefix="new-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(str(owner))
            for index in range(1, count):
                # Two agents may be given different networks; the numbers are the machine's.
                if self._take(Path(complete), self._claims / str(index)):
                    return index
        finally:
            Path(complete).unlink()
        raise NoCapacity(f"podCidr: all {count - 1} networks of {self._network} are in use")

    def _take(self, complete: Path, claim: Path) -> bool:
        if (NAMESPACES / f"inferx-{claim.name}").exists() or (
            LINKS / f"{_LINK_PREFIX}{claim.name}"
        ).exists():
            return False
        try:
            os.link(complete, claim)
        except FileExistsError:
            if Path(_owner(claim)).exists():
                return False
            # A claim that outlived its pod's folder and its namespace, such as after a reboot.
            claim.unlink(missing_ok=True)
            return self._take(complete, claim)
        return True

    async def _check_routes(self) -> None:
        routes = json.loads(await tools.run(["ip", "-json", "-4", "route", "show"]) or "[]")
        for route in routes:
            device, target = str(route.get("dev", "")), str(route.get("dst", ""))
            if device.startswith(_LINK_PREFIX) or target in ("", "default"):
                continue
            if route.get("metric") == _NOWHERE_METRIC:
                continue
            if device and not (LINKS / device).exists():
                continue  # of a container that has just gone: its link is called by its number now
            if ipaddress.IPv4Network(target, strict=False).overlaps(self._network):
                raise ConfigError(
                    f"podCidr: {self._network} overlaps {target}, which {device} leads to; choose"
                    " a network that this machine does not use"
                )
        self._checked = True


def _owner(claim: Path) -> str:
    try:
        return claim.read_text()
    except FileNotFoundError:
        return ""


def _host_side(network: PodNetwork) -> str:
    return (
        f"netns add {network.namespace}\n"
        f"link add {network.link} type veth peer name eth0 netns {network.namespace}\n"
        f"addr add {network.gateway}/{_PREFIX_BITS} dev {network.link}\n"
        f"link set {network.link} up\n"
    )


def _inside(network: PodNetwork) -> str:
    # No default route: it would lead to a host that forwards nothing, and a worker that asks for
    # a name would wait for seconds instead of hearing at once that there is nobody to ask.
    return f"addr add {network.address}/{_PREFIX_BITS} dev eth0\nlink set lo up\nlink set eth0 up\n"
