"""The entries of a node's configuration that are about its containers.

Must never look at the machine; the runtimes do.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from inferx.domain.reader import Fields

POD_CIDR = "10.213.0.0/16"


def pod_cidr(fields: Fields) -> str:
    """`podCidr`: the network of the containers' addresses, which are seen on this node only."""
    given = fields.string("podCidr", POD_CIDR)
    try:
        network = ipaddress.IPv4Network(given)
    except ValueError as error:
        fields.fail("podCidr", f"{given!r} is not an IPv4 network like {POD_CIDR}: {error}")
    if network.prefixlen > 29:
        fields.fail("podCidr", f"{given} has no room for containers; give a /29 or larger")
    return str(network)


def container_socket(fields: Fields) -> Path | None:
    """`containerSocket` of the Docker Engine; None means where it usually is."""
    given = fields.string("containerSocket", "")
    return Path(given) if given else None
