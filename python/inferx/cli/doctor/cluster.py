"""Checks of a running platform: gateway, nodes, etcd, and whether their clocks agree.

Must never write an object nor show a secret.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from inferx.cli.client import Gateway
from inferx.cli.doctor.machine import Finding, dotted, fail, none, ok, version_in, warn
from inferx.config import NodeConfig
from inferx.errors import InferxError

SECONDS_MAX = 5.0
CLOCK_SKEW_S_MAX = 2.0  # the Date header counts whole seconds
ETCD_MIN = (3, 4)
ETCD_LOSES_DATA = ((3, 5, 0), (3, 5, 2))  # from, to: data differed between members after a crash
QUOTA_SHARE_MAX = 0.8


def check(config: NodeConfig, gateway: Gateway) -> Iterator[Finding]:
    """All findings about the platform that `gateway` belongs to."""
    yield from _gateway(gateway)
    yield from etcd(config)


def _gateway(gateway: Gateway) -> Iterator[Finding]:
    try:
        with httpx.Client(timeout=SECONDS_MAX, trust_env=False) as client:
            answer = client.get(f"{gateway.url}/readyz")
    except httpx.HTTPError as error:
        advice = "start it, or say where it is with --server"
        yield fail("gateway", f"{gateway.url}: {error}", advice)
        return
    if answer.status_code == 200:
        yield ok("gateway", f"{gateway.url} is ready")
    else:
        yield fail("gateway", f"{gateway.url}: {answer.text.strip()[:200]}", "see its log")
    yield _clock("gateway clock", answer)
    try:
        nodes = gateway.json("GET", "/nodes/")
    except InferxError as error:
        yield warn("nodes", error.message, "log in or give a key to see them")
        return
    yield from _nodes(nodes)


def _nodes(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    if not nodes:
        yield fail("nodes", "none is registered", "start a node agent: inferx run nodeagent")
    for node in nodes:
        status = node["object"].get("status") or {}
        state = status.get("state", "unknown")
        gpus = (node["object"]["spec"].get("resources") or {}).get("GPUs") or []
        found = f"{state}, {len(gpus)} GPUs"
        name = f"node {node['name']}"
        if state == "Ready":
            yield ok(name, found)
        else:
            advice = "run `inferx doctor` there; its agent's log says what it waits for"
            yield fail(name, f"{found} {status.get('reason', '')}".strip(), advice)


def _clock(check: str, answer: httpx.Response) -> Finding:
    date = answer.headers.get("date")
    if date is None:
        return none(check, "it does not say its time")
    skew = abs(parsedate_to_datetime(date).timestamp() - time.time())
    found = f"{skew:.0f} s from this machine's"
    if skew > CLOCK_SKEW_S_MAX:
        return fail(check, found, "synchronise both: tokens and keys expire by the clock")
    return ok(check, found)


def etcd(config: NodeConfig) -> Iterator[Finding]:
    """Health, version, members and room of each configured etcd."""
    if not config.etcd_addrs:
        yield none("etcd", "node.json names none; the embedded store is used")
        return
    try:
        client = httpx.Client(timeout=SECONDS_MAX, trust_env=False, verify=_tls(config))
    except (OSError, ssl.SSLError) as error:
        yield fail("etcd", f"etcdconfig: {error}", "give the files of its certificates")
        return
    secure = bool(config.etcd.ca or config.etcd.cert)
    with client:
        for address in config.etcd_addrs:
            url = address if "://" in address else f"{'https' if secure else 'http'}://{address}"
            yield from _etcd_member(client, url)
        yield _members(client, url)


def _tls(config: NodeConfig) -> ssl.SSLContext | bool:
    if not (config.etcd.ca or config.etcd.cert):
        return True
    context = ssl.create_default_context(cafile=config.etcd.ca or None)
    if config.etcd.cert:
        context.load_cert_chain(config.etcd.cert, config.etcd.key or None)
    return context


def _etcd_member(client: httpx.Client, url: str) -> Iterator[Finding]:
    name = f"etcd {url.split('://')[1]}"
    try:
        health = client.get(f"{url}/health")
        version = client.get(f"{url}/version").json()
        status = client.post(f"{url}/v3/maintenance/status", json={}).json()
    except (httpx.HTTPError, ValueError) as error:
        yield fail(
            name, str(error) or type(error).__name__, "is it running, and reachable from here?"
        )
        return
    if health.status_code != 200 or str(health.json().get("health")).lower() != "true":
        yield fail(
            name, f"not healthy: {health.text.strip()[:100]}", "see its log; is a majority up?"
        )
        return
    number = version_in(version["etcdserver"]) or (0,)
    size_mb = int(status.get("dbSize", 0)) / 1e6
    found = f"{dotted(number)}, healthy, {size_mb:.0f} MB"
    if number < ETCD_MIN:
        yield fail(name, found, f"use etcd {dotted(ETCD_MIN)} or newer")
    elif ETCD_LOSES_DATA[0] <= number <= ETCD_LOSES_DATA[1]:
        yield fail(name, f"{found}: may lose data in a crash", "update to 3.5.21 or newer")
    elif number < (3, 4, 27):
        advice = "update; this one can lose events of watches, which InferX repairs by comparing"
        yield warn(name, found, advice)
    else:
        yield ok(name, found)
    if status.get("errors"):
        yield fail(
            name, f"alarms: {status['errors']}", "compact, defragment, then disarm the alarm"
        )


def _members(client: httpx.Client, url: str) -> Finding:
    try:
        members = client.post(f"{url}/v3/cluster/member/list", json={}).json().get("members", [])
    except (httpx.HTTPError, ValueError) as error:
        return none("etcd members", f"not told: {error}")
    found = f"{len(members)} members"
    if len(members) < 3:
        advice = "three survive the loss of one; back up regularly, see docs/operations.md"
        return warn("etcd members", found, advice)
    if len(members) % 2 == 0:
        return warn("etcd members", found, "an odd number: an even one survives no more losses")
    return ok("etcd members", found)
