"""The secret that keys are hashed under: configured, or made once on a machine of its own.

Must never replace a secret that is there; every key would stop to work.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from inferx.config import NodeConfig
from inferx.errors import ConfigError

FILE = "key-secret"


def key_secret(config: NodeConfig) -> bytes:
    """The configured secret; with the embedded store one that is made and kept in `dataDir`.

    Raises `ConfigError` when several machines would have to share one and none is configured.
    """
    if config.auth.key_secret:
        return config.auth.key_secret.reveal().encode()
    if config.etcd_addrs and config.auth.enable:
        raise ConfigError("INFERX_KEY_SECRET: needed where several gateways share one store")
    path = config.data_dir / FILE
    config.data_dir.mkdir(parents=True, exist_ok=True)
    _make(path)
    found = path.read_bytes().strip()
    if len(found) < 2 * 32:
        raise ConfigError(f"{path}: not a secret as InferX makes it")
    return found


def _make(path: Path) -> None:
    """Write a new secret unless there is one; another process may do so at the same time."""
    made = path.with_name(f"{FILE}.{os.getpid()}")
    descriptor = os.open(made, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
        try:
            os.link(made, path)  # fails when another was first
        except FileExistsError:
            return
    finally:
        made.unlink(missing_ok=True)
