"""The configuration of a node: `node.json` plus the environment, checked once at start.

The only reader of the environment. Must never log or print a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferx.domain import codec
from inferx.domain.accessconfig import AuthConfig, KeycloakConfig, Secret, ServiceTls
from inferx.domain.addresses import redact
from inferx.domain.nodeconfig import (
    LISTENERS,
    BlobConfig,
    EtcdConfig,
    NodeConfig,
    NodeResourcesConfig,
    ShareMemConfig,
    SimulatedGpu,
    TlsConfig,
    gpu_indices,
    read_config,
)
from inferx.errors import BadRequest, ConfigError

__all__ = [
    "LISTENERS", "SERVICES", "AuthConfig", "BlobConfig", "EtcdConfig", "KeycloakConfig",
    "NodeConfig", "NodeResourcesConfig", "Secret", "ServiceTls", "ShareMemConfig", "SimulatedGpu",
    "TlsConfig", "environment", "gpu_indices", "load", "redact", "service_name", "variables",
]  # fmt: skip

SERVICES = ("statesvc", "scheduler", "nodeagent", "gateway")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_ENVIRONMENT = {
    # variable -> (entry it overrides, how its text becomes the entry's value)
    "RUN_SERVICE": ("runService_", "service"),
    "POD_IP": ("hostIp", "text"),
    "NODE_NAME": ("nodeName", "text"),
    "ETCD_ADDR": ("etcdAddrs", "list"),
    "ETCD_ADDRS": ("etcdAddrs", "list"),
    "STATESVC_ADDR": ("stateSvcAddrs", "list"),
    "SCHEDULER_ADDR": ("schedulerAddr", "text"),
    "SCHEDULER_PORT": ("schedulerPort", "port"),
    "STATESVC_PORT": ("statSvcPort", "port"),
    "GATEWAY_PORT": ("gatewayPort", "port"),
    "METRICS_PORT": ("metricsPort", "port"),
    "AUDITDB_ADDR": ("auditdbAddr", "text"),
    "KEYCLOAK_URL": ("keycloakconfig.url", "text"),
    "KEYCLOAK_REALM": ("keycloakconfig.realm", "text"),
    "INFERX_ADMIN_APIKEY": ("adminApikey_", "text"),
    "INFERX_KEY_SECRET": ("keySecret_", "text"),
    "INFERX_DATA_DIR": ("dataDir", "text"),
    "INFERX_LISTENER": ("listener", "text"),
    "INFERX_LOG_FORMAT": ("logFormat", "text"),
    "INFERX_LOG_LEVEL": ("logLevel", "text"),
    "INFERX_CRASH_AFTER_WRITES": ("crashAfterWrites_", "count"),
    "INFERX_LISTEN_FD": ("listenFd_", "count"),
    "INFERX_STOPPING_FD": ("stoppingFd_", "count"),
}

# Secrets, which may also be given as the path of a file that holds them: NAME_FILE.
_FILE_SUFFIX = "_FILE"
_SECRETS = ("AUDITDB_ADDR", "INFERX_ADMIN_APIKEY", "INFERX_KEY_SECRET")


def variables() -> tuple[str, ...]:
    """All names that `load` reads from the environment."""
    return (*_ENVIRONMENT, *(name + _FILE_SUFFIX for name in _SECRETS))


def environment() -> dict[str, str]:
    """A copy of this process's environment, for those who start processes."""
    return dict(os.environ)


def load(path: Path | None, env: Mapping[str, str] | None = None) -> NodeConfig:
    """The configuration in file `path` (None = defaults) with `env` (None = the process's) on top.

    `${NAME}` inside a text entry is replaced from the environment. Raises `ConfigError` that names
    the entry and where it came from.
    """
    env = _with_files(os.environ if env is None else env)
    origin = "defaults" if path is None else str(path)
    document: Any = {}
    if path is not None:
        try:
            document = codec.parse_json(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except BadRequest as error:
            raise ConfigError(error.message) from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: expected a JSON object")
        document = _expand(document, "", env, origin)
    origins = _overlay(document, env)
    try:
        return read_config(document)
    except BadRequest as error:
        entry = error.message.split(":", 1)[0].split("[", 1)[0]
        source = origins.get(entry, origin)
        raise ConfigError(f"{source}: {redact(error.message)}") from error


def _with_files(env: Mapping[str, str]) -> Mapping[str, str]:
    """`env` with the secrets that were given as files; a secret given both ways is an error."""
    found = dict(env)
    for name in _SECRETS:
        path = env.get(name + _FILE_SUFFIX)
        if not path:
            continue
        if env.get(name):
            raise ConfigError(f"environment {name}{_FILE_SUFFIX}: {name} is set, too; give one")
        try:
            found[name] = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"environment {name}{_FILE_SUFFIX}: {path}: {error}") from error
        if not found[name]:
            raise ConfigError(f"environment {name}{_FILE_SUFFIX}: {path} is empty")
    return found


def _expand(value: Any, path: str, env: Mapping[str, str], origin: str) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, f"{path}.{k}".lstrip("."), env, origin) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{path}[{i}]", env, origin) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = env.get(match[1])
        if found is None:
            raise ConfigError(f"{origin}: {path}: environment variable {match[1]} is not set")
        return found

    return _REFERENCE.sub(lookup, value)


def _overlay(document: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Put the environment into `document`; returns which entries came from which variable."""
    origins: dict[str, str] = {}
    for variable, (entry, form) in _ENVIRONMENT.items():
        text = env.get(variable)
        if not text:
            continue
        value: Any = text
        if form == "list":
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif form in ("port", "count"):
            if not text.isascii() or not text.isdigit():
                number = "a port number" if form == "port" else "a number"
                raise ConfigError(f"environment {variable}: expected {number}, got {text!r}")
            value = int(text)
        elif form == "service":
            value = service_name(text, f"environment {variable}")
        section, _, name = entry.rpartition(".")
        target = document
        if section:
            target = document.setdefault(section, {})
            if not isinstance(target, dict):
                continue  # the wrong type of the section itself is reported by the reader
        target[name] = value
        origins[entry] = f"environment {variable}"
    return origins


def service_name(text: str, origin: str = "service") -> str:
    """`StateSvc`, `statesvc`, `state`, ... as the short name of a service."""
    name = text.strip().lower().replace("_", "").replace("-", "")
    name = {"state": "statesvc", "agent": "nodeagent", "node": "nodeagent"}.get(name, name)
    if name not in SERVICES:
        raise ConfigError(f"{origin}: {text!r} is not one of {', '.join(SERVICES)}")
    return name
