"""Thin mains, one per service: read the configuration, open, wire, serve.

Must never decide anything about the platform's business.
"""

from __future__ import annotations

import logging

from inferx import telemetry
from inferx.config import NodeConfig

_log = logging.getLogger(__name__)


def begin(service: str, config: NodeConfig) -> None:
    """Log as configured from now on; first what in the configuration has no effect."""
    telemetry.setup_logging(service, config.log_format, config.log_level)
    for warning in config.warnings:
        _log.warning("configuration: %s", warning)
