"""The callers that the data plane asks about: verdicts given, kept for a while, and taken back.

Must never leave the data plane without an answer, nor a verdict in force that was revoked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc.aio

from inferx._ext import Proxy
from inferx.auth import Principal, call_grants
from inferx.auth.authenticator import Authenticator, now_ms
from inferx.domain import codec
from inferx.domain.apikey import ApiKey
from inferx.domain.meta import Key, Object
from inferx.errors import InferxError, Unauthenticated
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc
from inferx.store.informer import DELETED, Informer

VERDICT_MS = 3_600_000
REFUSAL_MS = 2_000
"""How long a refusal is kept: a key may be made right after it was tried."""
USED_EVERY_MS = 300_000
"""How exactly the last use of a key is noted."""
JUDGING_MAX = 256
_log = logging.getLogger(__name__)


class Callers:
    """Follows the keys, judges credentials, and notes when keys were used."""

    def __init__(
        self,
        proxy: Proxy,
        authenticator: Authenticator,
        channel: grpc.aio.Channel,
        on_login: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._on_login = on_login
        self._proxy = proxy
        self._authenticator = authenticator
        self._informer = Informer(channel, "apikey")
        make: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self._stub = make(channel)
        self._tasks: set[asyncio.Task[None]] = set()
        self._judging = asyncio.Semaphore(JUDGING_MAX)
        self._changed = asyncio.Event()
        self._noted: dict[str, int] = {}
        self._informer.subscribe(self._on_key)

    async def start(self) -> None:
        """Follow the keys; returns when all of them are known."""
        await self._informer.start()
        await self._informer.synced.wait()
        self._authenticator.ready = True

    async def stop(self) -> None:
        """End the stream and what is being judged."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._informer.stop()

    async def seen(self, key: Key, present: bool, timeout_s: float = 2.0) -> None:
        """Wait until a key is known here, or known to be gone."""
        try:
            async with asyncio.timeout(timeout_s):
                while (self._informer.get(key) is not None) != present:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            _log.warning("a written key is not seen here yet")

    def _on_key(self, event: str, obj: Object[Any]) -> None:
        table = self._authenticator.keys
        # Those that a key minted end with it, and are looked for while it is still known.
        affected = {obj.meta.name} | table.descendants(obj.meta.name)
        if event == DELETED:
            table.drop(obj)
            self._noted.pop(obj.meta.name, None)
        else:
            table.put(obj)
        for key_id in affected:
            self._proxy.revoke_verdicts(key_id)
        self._changed.set()

    # ---- verdicts ----

    def judge(self, digest: bytes, credential: str) -> None:
        """Answer the data plane's question, soon."""
        task = asyncio.create_task(self._judge(digest, credential), name="verdict")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, digest: bytes, credential: str) -> None:
        try:
            async with self._judging:
                principal = await self._authenticator.principal(credential)
        except InferxError as error:
            self._refuse(digest, error)
            return
        except Exception:
            _log.exception("judging a credential")
            self._refuse(digest, InferxError("internal error; see the gateway's log"))
            return
        self._admit(digest, principal)

    def _admit(self, digest: bytes, principal: Principal) -> None:
        lifetime_ms = VERDICT_MS
        if principal.expires_ms:
            lifetime_ms = min(lifetime_ms, principal.expires_ms - now_ms())
        if lifetime_ms <= 0:
            self._refuse(digest, Unauthenticated("the credential is over"))
            return
        self._proxy.set_verdict(
            digest,
            principal=principal.name,
            tag=principal.key_id,
            grants=call_grants(principal),
            lifetime_ms=lifetime_ms,
        )
        self._on_login(principal.name)

    def _refuse(self, digest: bytes, error: InferxError) -> None:
        self._proxy.refuse_verdict(
            digest,
            http_status=error.http_status,
            code=error.code,
            message=error.message,
            lifetime_ms=REFUSAL_MS if error.http_status < 500 else 0,
        )

    # ---- last use ----

    def used(self, principal: str) -> None:
        """A caller has called; the use of a key is noted now and then."""
        _, colon, key_id = principal.partition("key:")
        now = now_ms()
        if not colon or now - self._noted.get(key_id, 0) < USED_EVERY_MS:
            return
        obj = self._authenticator.keys.get(key_id)
        if obj is None:
            return
        self._noted[key_id] = now
        if now - obj.spec.last_used_ms >= USED_EVERY_MS:
            task = asyncio.create_task(self._note(obj, now), name="key-used")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _note(self, obj: Object[ApiKey], now: int) -> None:
        """Guarded by the revision: a key that was revoked meanwhile does not come back."""
        raw = replace(obj.spec, last_used_ms=now).to_raw()
        changed = codec.new("apikey", obj.key, raw)
        message = ixmeta_pb2.UpdateRequestMessage(
            expect_rev=obj.revision, obj=convert.to_proto(changed)
        )
        try:
            await client.call(self._stub.Update, message, 5.0)
        except InferxError as error:
            # Another gateway noted it, or the key is gone; the next use notes it again.
            _log.debug("the use of key %s was not noted: %s", obj.meta.name, error)
