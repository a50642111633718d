"""Notices that the certificate's files were replaced, as renewal does, and has them read again.

Must never take a good certificate out of use because a new one cannot be read.
"""

from __future__ import annotations

import asyncio
import logging
import os

from inferx._ext import Proxy
from inferx.domain.nodeconfig import TlsConfig

CHECK_EVERY_S = 5.0
_log = logging.getLogger(__name__)


async def follow(proxy: Proxy, tls: TlsConfig, every_s: float = CHECK_EVERY_S) -> None:
    """Look at the files until cancelled; returns at once when there are none."""
    if not tls.enable:
        return
    used = _stamp(tls)
    while True:
        await asyncio.sleep(every_s)
        seen = _stamp(tls)
        if seen in (used, None):
            continue
        try:
            proxy.reload_certificate()
        except OSError as error:
            # Certificate and key are two files: the other one may be on its way.
            _log.warning("the new certificate cannot be used, the old one stays: %s", error)
        else:
            _log.info("serving with the new certificate in %s", tls.cert)
        used = seen


def _stamp(tls: TlsConfig) -> tuple[int, int] | None:
    """When the two files were changed; None while one of them is missing."""
    try:
        return os.stat(tls.cert).st_mtime_ns, os.stat(tls.key).st_mtime_ns
    except OSError:
        return None
