"""Serves the data plane alone for many tenants with limits, until it is terminated.

Called by `bench/tenants.py` as `tenants_host.py SOCKET WORKER_PORT TENANTS RATE`; prints its port.
Tenants are t0, t1, ...; each has the function n/f and RATE calls per second.
"""

import sys
import time

from inferx._ext import Proxy

SLOTS = 64


def main() -> None:
    socket_path, worker_port, tenants, rate = sys.argv[1:]
    proxy = Proxy("127.0.0.1", 0, socket_path, threads=1)
    port = proxy.start()
    for number in range(int(tenants)):
        proxy.upsert_function(
            f"t{number}/n/f",
            revision=1,
            parallel=SLOTS,
            queue_len=SLOTS,
            queue_timeout_ms=10_000,
            wait_ratio=1.0,
            scalein_timeout_ms=3_600_000,
        )
        proxy.set_tenant_limits(f"t{number}", request_rate=float(rate))
    proxy.set_synced()
    print(port, flush=True)
    lease_id = 0
    while True:
        for event in proxy.take_events():
            if event[0] == "need_worker":
                lease_id += 1
                proxy.add_worker(
                    event[1],
                    revision=1,
                    lease_id=lease_id,
                    pod_id=f"p{lease_id}",
                    host="127.0.0.1",
                    port=int(worker_port),
                    slots=SLOTS,
                    start="warm",
                )
        proxy.take_records()
        time.sleep(0.01)


if __name__ == "__main__":
    main()
