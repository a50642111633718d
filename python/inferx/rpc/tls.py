"""Certificates between services: read from files, read again when the files change.

Must never let a service speak in clear where certificates are configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from inferx.config import ServiceTls
from inferx.errors import ConfigError

SERVER_NAME = "inferx"
"""What every certificate names as its host (a DNS entry): services are found by address."""
_log = logging.getLogger(__name__)


class _Process:
    """The certificates of this process, set once by its main before anything is opened."""

    files: ServiceTls | None = None


def use(files: ServiceTls) -> None:
    """Speak with these certificates from now on; `ConfigError` when they cannot be read."""
    _Process.files = files if files.ca else None
    if _Process.files is not None:
        _read(files)


def in_use() -> bool:
    """Whether services prove to each other who they are."""
    return _Process.files is not None


def _read(files: ServiceTls) -> tuple[bytes, bytes, bytes]:
    found = []
    for entry, path in (("ca", files.ca), ("key", files.key), ("cert", files.cert)):
        try:
            found.append(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"servicetls.{entry}: {path}: {error.strerror}") from error
    return found[0], found[1], found[2]


def files() -> ServiceTls | None:
    """The certificates of this process, None when services speak in clear."""
    return _Process.files


def channel_credentials() -> grpc.ChannelCredentials | None:
    """What a new channel shows, None for a channel in clear."""
    if _Process.files is None:
        return None
    ca, key, cert = _read(_Process.files)
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials() -> Any:
    """What a server shows and asks for, None for a server in clear; follows the files."""
    files = _Process.files
    if files is None:
        return None
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), _follow(files), require_client_authentication=True
    )


def _configuration(files: ServiceTls) -> Any:
    ca, key, cert = _read(files)
    return grpc.ssl_server_certificate_configuration([(key, cert)], ca)


def _follow(files: ServiceTls) -> Callable[[], Any]:
    """Called by the library for each handshake: a new configuration, or None for the same."""
    seen = _stamps(files)

    def changed() -> Any:
        nonlocal seen
        try:
            now = _stamps(files)
            if now == seen:
                return None
            found = _configuration(files)
        except (OSError, ConfigError) as error:
            # In the middle of being replaced: what was read before still serves.
            _log.warning("the certificates were not read again: %s", error)
            return None
        seen = now
        return found

    return changed


def _stamps(files: ServiceTls) -> list[int]:
    return [Path(path).stat().st_mtime_ns for path in (files.ca, files.key, files.cert)]
