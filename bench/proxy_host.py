"""Serves the data plane alone, one function with one worker, until it is terminated.

Called by `bench/proxy.py` as `proxy_host.py SOCKET WORKER_PORT`; prints its port when
a call has passed.
"""

import sys
import threading
import time
import urllib.request

from inferx._ext import Proxy

KEY = "public/bench/f"
SLOTS = 256
READY_S = 10.0


def first_call(port: int) -> None:
    url = f"http://127.0.0.1:{port}/funccall/{KEY}/"
    urllib.request.urlopen(url, timeout=READY_S).read()


def main() -> None:
    socket_path, worker_port = sys.argv[1], int(sys.argv[2])
    proxy = Proxy("127.0.0.1", 0, socket_path, threads=1)
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
