"""What a function is: image, command, resources, endpoint, sample query, standby tiers.

Must never decide anything; the scheduler core does. Memory is MB, CPU millicores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inferx.domain.meta import type_name
from inferx.domain.policy import PolicyRef, read_policy_ref
from inferx.domain.reader import SECONDS_MAX, Fields

STANDBY_TIERS = ("File", "Mem", "Blob")
GPUS_MAX = 1024
CONTEXTS_MAX = 1024  # on each GPU


@dataclass(frozen=True)
class GpuRequest:
    """GPUs of one worker; `vram_mb` is per GPU."""

    type: str = "Any"  # as the node names its GPUs
    count: int = 0
    vram_mb: int = 0
    context_count: int = 0  # CUDA contexts on each GPU; each takes the node's overhead (0 = one)


@dataclass(frozen=True)
class Resources:
    """What one worker takes from its node; `gpu` is None for a function without one."""

    cpu_millis: int
    mem_mb: int
    ready_mem_mb: int = 0  # in place of `mem_mb` while it is parked (0 = the same)
    cache_mem_mb: int = 0  # of the node's cache memory, also while it is parked
    gpu: GpuRequest | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where a worker listens, and how to tell that it is ready."""

    port: int = 8000  # in a container; a plain process is given a free one as $PORT
    schema: str = "Http"  # of the probe; calls come over HTTP
    probe: str = "/health"
    probe_timeout_ms: int = 1000  # of one try
    probe_type: str = "HealthCheck"  # or Prompt: the first probe is the sample query


@dataclass(frozen=True)
class SampleQuery:
    """A call that a healthy worker answers; also used as the `Prompt` probe."""

    api_type: str = ""  # kept, without effect; as `prompts` and `data_url`
    path: str = ""  # also what `inferx call` calls without --path
    prompt: str = ""
    prompts: tuple[str, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)  # its `model` is the server's own name
    image_url: str = ""
    data_url: str = ""
    loading_timeout_s: int = 90  # from the start of a worker to its first good probe


@dataclass(frozen=True)
class Standby:
    """Where a parked worker's memory is kept: docs/workers.md."""

    gpu: str = "File"
    pageable: str = "File"  # kept, without effect: host memory stays where it is
    pinned: str = "File"  # the same


@dataclass(frozen=True)
class Mount:
    """One folder of the node shown inside the worker."""

    host_path: str
    mount_path: str


@dataclass(frozen=True)
class FunctionSpec:
    """A function as its author wrote it, typed."""

    image: str
    resources: Resources
    commands: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    mount_files: tuple[dict[str, Any], ...] = ()
    endpoint: Endpoint = field(default_factory=Endpoint)
    sample_query: SampleQuery | None = None
    standby: Standby = field(default_factory=Standby)
    policy: PolicyRef | None = None
    model_type: str = ""

    @property
    def served_model(self) -> str:
        """The model name its server answers to ("" when the manifest does not tell)."""
        if self.sample_query is not None:
            model = self.sample_query.body.get("model")
            if isinstance(model, str) and model:
                return model
        for option in ("--served-model-name", "--model"):
            for index, word in enumerate(self.commands):
                if word.startswith(f"{option}="):
                    return word.split("=", 1)[1]
                if word == option and index + 1 < len(self.commands):
                    return self.commands[index + 1]
        return ""


Function = FunctionSpec


def read_function(fields: Fields) -> FunctionSpec:
    """A function from its `object` member."""
    spec = fields.need("spec")
    fields.mapping("status")
    fields.finish()
    result = FunctionSpec(
        image=spec.string("image", ""),
        resources=_read_resources(spec.need("resources")),
        commands=spec.strings("commands"),
        entrypoint=spec.strings("entrypoint"),
        envs=_read_envs(spec),
        mounts=tuple(_read_mount(item) for item in spec.children("mounts")),
        mount_files=tuple(dict(item.value) for item in spec.children("mountfiles")),
        endpoint=_read_endpoint(spec),
        sample_query=_read_sample_query(spec.child("sample_query")),
        standby=_read_standby(spec.child("standby")),
        policy=read_policy_ref(spec.child("policy")),
        model_type=spec.string("model_type", ""),
    )
    if not result.image and not result.entrypoint and not result.commands:
        spec.fail("image", "required (string) unless entrypoint or commands are given")
    spec.finish()
    return result


def _read_resources(fields: Fields) -> Resources:
    resources = Resources(
        cpu_millis=fields.integer("CPU", unit="millicores"),
        mem_mb=fields.integer("Mem", unit="MB"),
        ready_mem_mb=fields.integer("ReadyMem", 0, unit="MB"),
        cache_mem_mb=fields.integer("CacheMem", 0, unit="MB"),
        gpu=_read_gpu(fields.child("GPU")),
    )
    fields.finish()
    return resources


def _read_gpu(fields: Fields | None) -> GpuRequest | None:
    if fields is None:
        return None
    count = fields.integer("Count", high=GPUS_MAX)
    gpu = GpuRequest(
        type=fields.string("Type", "Any"),
        count=count,
        vram_mb=fields.integer("vRam", 0 if count == 0 else None, unit="MB", low=min(count, 1)),
        context_count=fields.integer("contextCount", 0, high=CONTEXTS_MAX),
    )
    fields.finish()
    return gpu if count else None


def _read_envs(spec: Fields) -> tuple[tuple[str, str], ...]:
    envs: list[tuple[str, str]] = []
    for index, item in enumerate(spec.array("envs")):
        where = f"envs[{index}]"
        if not isinstance(item, list | tuple) or len(item) != 2:
            spec.fail(where, f"expected [name, value], got {type_name(item)}")
        name, value = item
        if not isinstance(name, str) or not isinstance(value, str):
            spec.fail(where, "expected [name, value] as two strings")
        if not name or "=" in name or "\0" in name or "\0" in value:
            spec.fail(where, f"{name!r} is not a legal name of an environment variable")
        envs.append((name, value))
    return tuple(envs)


def _read_mount(fields: Fields) -> Mount:
    mount = Mount(
        host_path=fields.string("hostpath", what="path"),
        mount_path=fields.string("mountpath", what="path"),
    )
    fields.finish()
    return mount


def _read_endpoint(spec: Fields) -> Endpoint:
    default = Endpoint()
    older = spec.child("probe")  # the older form keeps the probe beside the endpoint
    probe = default.probe
    if older is not None:
        probe = older.string("path", probe)
        older.integer("port", 0, high=65535)
        older.string("schema", "")
        older.finish()
    fields = spec.child("endpoint")
    if fields is None:
        return Endpoint(probe=probe)
    endpoint = Endpoint(
        port=fields.integer("port", default.port, low=1, high=65535),
        schema=fields.choice("schema", ("Http", "Https"), default.schema),
        probe=fields.string("probe", probe),
        probe_timeout_ms=fields.integer(
            "probeTimeout",
            default.probe_timeout_ms,
            unit="milliseconds",
            low=1,
            high=SECONDS_MAX * 1000,
        ),
        probe_type=fields.choice("probetype", ("HealthCheck", "Prompt"), default.probe_type),
    )
    if endpoint.schema == "Https":
        fields.warnings.append(f"{fields.at('schema')}: Https is for the probe; calls are HTTP")
    fields.finish()
    return endpoint


def _read_sample_query(fields: Fields | None) -> SampleQuery | None:
    if fields is None:
        return None
    query = SampleQuery(
        api_type=fields.string("apiType", ""),
        path=fields.string("path", ""),
        prompt=fields.string("prompt", ""),
        prompts=fields.strings("prompts"),
        body=fields.mapping("body"),
        image_url=fields.string("imageUrl", ""),
        data_url=fields.string("dataUrl", ""),
        loading_timeout_s=fields.integer(
            "loadingTimeout", 90, unit="seconds", low=1, high=SECONDS_MAX
        ),
    )
    fields.finish()
    return query


def _read_standby(fields: Fields | None) -> Standby:
    if fields is None:
        return Standby()
    standby = Standby(
        gpu=fields.choice("gpu", STANDBY_TIERS, "File"),
        pageable=fields.choice("pageable", STANDBY_TIERS, "File"),
        pinned=fields.choice("pinned", STANDBY_TIERS, "File"),
    )
    fields.finish()
    return standby
