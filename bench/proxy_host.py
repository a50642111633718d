"""Serves the data plane alone, one function with one worker, until it is terminated.

Called by `bench/proxy.py` as `proxy_host.py SOCKET WORKER_PORT [auth]`; prints its port when
a call has passed. With `auth` every call needs the key `KEY_OF_ALL` of that file.
"""

import sys
import threading
import time
import urllib.request

from inferx._ext import Proxy

KEY = "public/bench/f"
SLOTS = 256
READY_S = 10.0


# Not a secret: this process knows no other, and only the loopback reaches it.
KEY_OF_ALL = "ix_" + "5a" * 32


def first_call(port: int) -> None:
    url = f"http://127.0.0.1:{port}/funccall/{KEY}/"
    headers = {"Authorization": f"Bearer {KEY_OF_ALL}"}
    urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=READY_S).read()


def main() -> None:
    socket_path, worker_port = sys.argv[1], int(sys.argv[2])
    auth_key = b"x" * 32 if "auth" in sys.argv[3:] else None
    proxy = Proxy("127.0.0.1", 0, socket_path, threads=1, auth_key=auth_key)
    port = proxy.start()
    proxy.upsert_function(
        KEY,
        revision=1,
        parallel=SLOTS,
        queue_len=SLOTS,
        queue_timeout_ms=10_000,
        wait_ratio=1.0,
        scalein_timeout_ms=3_600_000,
    )
    proxy.set_synced()
    caller = threading.Thread(target=first_call, args=(port,))
    caller.start()
    added, give_up = False, time.monotonic() + READY_S
    while not added and time.monotonic() < give_up:
        for event in proxy.take_events():
            if event[0] == "need_verdict" and event[2] == KEY_OF_ALL:
                proxy.set_verdict(event[1], "key:bench", "bench", ["public/bench"], 3_600_000)
            if event[0] == "need_worker" and not added:
                added = proxy.add_worker(
                    KEY,
                    revision=1,
                    lease_id=1,
                    pod_id="bench",
                    host="127.0.0.1",
                    port=worker_port,
                    slots=SLOTS,
                    start="warm",
                )
        time.sleep(0.005)
    caller.join()
    if not added:
        sys.exit("the plane never asked for a worker")
    print(port, flush=True)
    while True:  # what the gateway's event loop does with records and events
        time.sleep(0.1)
        proxy.take_records()
        proxy.take_events()


if __name__ == "__main__":
    main()
