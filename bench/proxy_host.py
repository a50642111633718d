"""Serves the data plane alone, with workers added directly, until it is terminated.

Called by `bench/proxy.py` as `proxy_host.py SOCKET UNARY_PORT CHAT_PORT [auth]`; prints its port.
`f` and `s` have a worker each; `g` has none until `add` is written to its input. `parked` prints
how many calls wait for `g`. With `auth` every call needs the key `KEY_OF_ALL` of this file.
"""

import json
import selectors
import sys

from inferx._ext import Proxy

SLOTS = 4096
QUEUE = 20_000
FOR_EVER_MS = 3_600_000
DRAIN_EVERY_S = 0.1
# Not a secret: this process knows no other, and only the loopback reaches it.
KEY_OF_ALL = "ix_" + "5a" * 32


def create(proxy: Proxy, name: str) -> None:
    proxy.upsert_function(
        f"public/bench/{name}",
        revision=1,
        parallel=SLOTS,
        queue_len=QUEUE,
        queue_timeout_ms=600_000,
        wait_ratio=1.0,
        scalein_timeout_ms=FOR_EVER_MS,
    )


def add_worker(proxy: Proxy, name: str, lease_id: int, port: int, slots: int) -> None:
    added = proxy.add_worker(
        f"public/bench/{name}",
        revision=1,
        lease_id=lease_id,
        pod_id="bench",
        host="127.0.0.1",
        port=port,
        slots=slots,
        start="warm",
    )
    if not added:
        sys.exit(f"the worker of {name} was not taken")


def main() -> None:
    socket_path, unary, chat = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    auth_key = b"x" * 32 if "auth" in sys.argv[4:] else None
    proxy = Proxy("127.0.0.1", 0, socket_path, threads=1, auth_key=auth_key)
    port = proxy.start()
    for name in ("f", "s", "g"):
        create(proxy, name)
    add_worker(proxy, "f", 1, unary, SLOTS)
    add_worker(proxy, "s", 2, chat, SLOTS)
    proxy.set_synced()
    print(port, flush=True)
    orders = selectors.DefaultSelector()
    orders.register(sys.stdin, selectors.EVENT_READ)
    while True:  # what the gateway's event loop does with records and events
        for _ in orders.select(DRAIN_EVERY_S):
            order = sys.stdin.readline().split()
            if not order:
                return
            if order[0] == "add":
                add_worker(proxy, "g", 3, int(order[1]), 64)
            else:
                parked = json.loads(proxy.stats())["functions"]["public/bench/g"]["parked"]
                print(parked, flush=True)
        proxy.take_records()
        for event in proxy.take_events():
            if event[0] == "need_verdict" and event[2] == KEY_OF_ALL:
                proxy.set_verdict(event[1], "key:bench", "bench", ["public/bench"], FOR_EVER_MS)


if __name__ == "__main__":
    main()
