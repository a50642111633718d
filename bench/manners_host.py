"""Serves the data plane alone for `bench/manners.py`, which tells it what to do over its input.

Commands, one a line: `worker PORT SLOTS`, `hold MS` (keeps the interpreter lock so long), `rss`.
Each is answered by a line; the first line is the port.
"""

import ctypes
import resource
import sys
import tempfile
from pathlib import Path

from inferx._ext import Proxy

KEY = "t/n/f"
QUEUE_LEN = 20_000


def rss_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy("127.0.0.1", 0, Path(folder, "control.sock"))
        port = proxy.start()
        proxy.upsert_function(
            KEY,
            revision=1,
            parallel=64,
            queue_len=QUEUE_LEN,
            queue_timeout_ms=120_000,
            wait_ratio=1.0,
            scalein_timeout_ms=3_600_000,
        )
        proxy.set_synced()
        print(port, flush=True)
        # The calls of this library keep the interpreter lock, as a careless extension would.
        library = ctypes.PyDLL(None)
        for number, line in enumerate(sys.stdin, 1):
            command, *arguments = line.split()
            if command == "worker":
                slots = int(arguments[1])
                proxy.add_worker(
                    KEY, revision=1, lease_id=number, pod_id=f"pod{number}", host="127.0.0.1",
                    port=int(arguments[0]), slots=slots, start="warm",
                )  # fmt: skip
            elif command == "hold":
                library.usleep(int(arguments[0]) * 1000)
            proxy.take_records()
            proxy.take_events()
            print(rss_kib(), flush=True)
        proxy.drain(2000)


if __name__ == "__main__":
    main()
