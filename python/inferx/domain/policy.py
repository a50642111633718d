"""Function policies and tenant limits: how many replicas, how long a queue, how long to wait.

Must never look anything up by itself; `codec.resolve_policy` is given a lookup.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inferx.domain.reader import COUNT_MAX, SECONDS_MAX, Fields

PRIORITY_MAX = 1_000
WEIGHT_MAX = 1_000_000
WAIT_RATIO_MAX = 1_000_000
_ALIASES = {
    "parallel": "maxConcurrency",
    "min_replica": "minReplicas",
    "max_replica": "maxReplicas",
    "standby_per_node": "maxPodsPerNode",
}


@dataclass(frozen=True)
class FuncPolicy:
    """How a function scales and queues. Times are milliseconds here, seconds in JSON."""

    min_replica: int = 0
    """Workers that are kept running though nobody calls."""
    max_replica: int = 1
    """Workers that run at a time; parked ones do not count."""
    standby_per_node: int = 1
    """Parked workers that a node keeps; beyond that an idle worker is ended."""
    parallel: int = 50
    """Calls that one worker serves at a time."""
    queue_len: int = 100
    """Calls that may wait at a gateway; the next one gets 429."""
    queue_timeout_ms: int = 30_000
    """How long a call waits for a worker."""
    wait_ratio: float = 0.1
    """Another worker is started when more calls wait than this part of the running slots."""
    scalein_timeout_ms: int = 1_000
    """How long a gateway keeps a worker that it does not call."""
    graph_sync: bool = False
    """Kept for manifests that have it, without effect; as `nvidia_replica`."""
    nvidia_replica: int = 0

    def to_raw(self) -> dict[str, Any]:
        """The policy as the JSON of a `funcpolicy` object."""
        return {
            "min_replica": self.min_replica,
            "max_replica": self.max_replica,
            "standby_per_node": self.standby_per_node,
            "parallel": self.parallel,
            "queue_len": self.queue_len,
            "queue_timeout": self.queue_timeout_ms / 1000,
            "scaleout_policy": {"WaitQueueRatio": {"wait_ratio": self.wait_ratio}},
            "scalein_timeout": self.scalein_timeout_ms / 1000,
            "runtime_config": {"graph_sync": self.graph_sync},
            "nvidia_replica": self.nvidia_replica,
        }


@dataclass(frozen=True)
class PolicyRef:
    """A function's own choice of policy: `obj` in place, or a link to one by name."""

    obj: FuncPolicy | None = None
    link_type: str = ""
    link_namespace: str = ""
    link_name: str = ""


@dataclass(frozen=True)
class TenantLimit:
    """What a tenant may use (None = not limited), and whose turn it is when there is too little."""

    max_funccount: int | None = None
    allow_mem_standby: bool = True
    """Whether its idle workers may be parked."""
    min_replica_cap: int | None = None
    """What any function's `min_replica` counts for at most."""
    max_replica: int | None = None
    """Workers that run at a time, over all of its functions."""
    max_gpu: int | None = None
    """GPUs in use, shares added up."""
    max_standby: int | None = None
    """Parked workers."""
    max_queue_len: int | None = None
    """What any function's `queue_len` counts for at most."""
    max_request_rate: float | None = None
    """Calls in a second, over all gateways; so are the next two."""
    max_concurrency: int | None = None
    max_tokens_per_minute: int | None = None
    priority: int = 0
    """When tenants compete for room, those of a higher priority are served first."""
    weight: int = 1
    """Among tenants of one priority, who uses least GPU for its weight is served first."""

    def apply(self, policy: FuncPolicy) -> FuncPolicy:
        """`policy` cut down to what the tenant may use."""

        def cap(value: int, *limits: int | None) -> int:
            return min([value, *(limit for limit in limits if limit is not None)])

        return replace(
            policy,
            min_replica=cap(policy.min_replica, self.min_replica_cap, self.max_replica),
            max_replica=cap(policy.max_replica, self.max_replica),
            standby_per_node=cap(policy.standby_per_node, self.max_standby),
            queue_len=cap(policy.queue_len, self.max_queue_len),
        )


def read_policy(fields: Fields) -> FuncPolicy:
    """A policy from the JSON of a `funcpolicy` object or of `spec.policy.Obj`."""
    default = FuncPolicy()

    def count(name: str, fallback: int, low: int = 0) -> int:
        alias = _ALIASES.get(name)
        if alias is not None and fields.has(alias):
            if fields.has(name):
                fields.fail(alias, f"is another name of {name}; give one of them")
            fields.take(name)
            return fields.integer(alias, fallback, low=low, high=COUNT_MAX)
        return fields.integer(name, fallback, low=low, high=COUNT_MAX)

    def milliseconds(name: str, fallback_ms: int, low: float) -> int:
        default_s = fallback_ms / 1000
        seconds = fields.number(name, default_s, unit="of seconds", low=low, high=SECONDS_MAX)
        return round(seconds * 1000)

    policy = FuncPolicy(
        min_replica=count("min_replica", default.min_replica),
        max_replica=count("max_replica", default.max_replica),
        standby_per_node=count("standby_per_node", default.standby_per_node),
        parallel=count("parallel", default.parallel, low=1),
        queue_len=count("queue_len", default.queue_len),
        queue_timeout_ms=milliseconds("queue_timeout", default.queue_timeout_ms, 0.001),
        wait_ratio=_read_wait_ratio(fields, default.wait_ratio),
        scalein_timeout_ms=milliseconds("scalein_timeout", default.scalein_timeout_ms, 0.0),
        graph_sync=_read_graph_sync(fields, default.graph_sync),
        nvidia_replica=count("nvidia_replica", default.nvidia_replica),
    )
    if policy.min_replica > policy.max_replica:
        fields.fail(
            "min_replica", f"{policy.min_replica} is more than max_replica {policy.max_replica}"
        )
    fields.finish()
    return policy


def _read_wait_ratio(fields: Fields, default: float) -> float:
    scaleout = fields.child("scaleout_policy")
    if scaleout is None:
        return default
    ratio = scaleout.need("WaitQueueRatio")
    value = ratio.number("wait_ratio", default, high=WAIT_RATIO_MAX)
    ratio.finish()
    scaleout.finish()
    return value


def _read_graph_sync(fields: Fields, default: bool) -> bool:
    runtime = fields.child("runtime_config")
    if runtime is None:
        return default
    value = runtime.boolean("graph_sync", default)
    runtime.finish()
    return value


def read_policy_ref(fields: Fields | None) -> PolicyRef | None:
    """`spec.policy`: {"Obj": {...}} or {"Link": {objType, namespace, name}}."""
    if fields is None:
        return None
    obj, link = fields.child("Obj"), fields.child("Link")
    fields.finish()
    if (obj is None) == (link is None):
        fields.fail("Obj", 'give exactly one of "Obj" and "Link"')
    if obj is not None:
        return PolicyRef(obj=read_policy(obj))
    assert link is not None
    ref = PolicyRef(
        link_type=link.choice("objType", ("funcpolicy",), "funcpolicy"),
        link_namespace=link.string("namespace"),
        link_name=link.string("name"),
    )
    link.finish()
    return ref


def read_limit(fields: Fields | None) -> TenantLimit:
    """`tenant.spec.limit`."""
    if fields is None:
        return TenantLimit()
    limit = TenantLimit(
        max_funccount=fields.optional_integer("max_funccount", high=COUNT_MAX),
        allow_mem_standby=fields.boolean("allow_mem_standby", True),
        min_replica_cap=fields.optional_integer("min_replica_cap", high=COUNT_MAX),
        max_replica=fields.optional_integer("max_replica", high=COUNT_MAX),
        max_gpu=fields.optional_integer("max_gpu", high=COUNT_MAX),
        max_standby=fields.optional_integer("max_standby", high=COUNT_MAX),
        max_queue_len=fields.optional_integer("max_queue_len", high=COUNT_MAX),
        max_request_rate=_optional_rate(fields),
        max_concurrency=fields.optional_integer("max_concurrency", high=COUNT_MAX),
        max_tokens_per_minute=fields.optional_integer("max_tokens_per_minute"),
        priority=fields.integer("priority", 0, low=-PRIORITY_MAX, high=PRIORITY_MAX),
        weight=fields.integer("weight", 1, low=1, high=WEIGHT_MAX),
    )
    fields.finish()
    return limit


def _optional_rate(fields: Fields) -> float | None:
    if not fields.has("max_request_rate"):
        fields.take("max_request_rate")
        return None
    return fields.number("max_request_rate", 0.0, unit="per second", low=0.001)
