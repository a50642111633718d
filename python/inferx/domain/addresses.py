"""Addresses of services in a configuration: host:port, one or several.

Must never resolve a name.
"""

from __future__ import annotations

import ipaddress
import re

from inferx.domain.reader import Fields
from inferx.errors import BadRequest

_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]*@")


def redact(text: str) -> str:
    """`text` with the passwords of URLs replaced by ***."""
    return _URL_PASSWORD.sub(r"\1***@", text)


def address(text: str, entry: str) -> str:
    """host:port, an http:// prefix taken off."""
    found = text.removeprefix("http://").rstrip("/")
    _, colon, port = found.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadRequest(f"{entry}: expected host:port, got {redact(text)!r}")
    return found


def addresses(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of addresses; one with https:// stays as it is."""
    return tuple(
        item if item.startswith("https://") else address(item, name)
        for item in fields.strings(name)
    )


def several(fields: Fields, name: str) -> tuple[str, ...]:
    """Addresses of replicas. One may be a name (which stands for all its addresses)."""
    found = addresses(fields, name)
    for one in found if len(found) > 1 else ():
        try:
            ipaddress.IPv4Address(one.rpartition(":")[0])
        except ValueError:
            fields.fail(
                name,
                f"of several each has to be an IPv4 address, {one!r} is not; or give one name",
            )
    return found
