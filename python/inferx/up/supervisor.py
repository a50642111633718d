"""Starts the services in order, keeps them running, and stops them in order.

Must never end while something that it started still runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx

from inferx import config
from inferx.errors import ConfigError, InferxError, StartFailed
from inferx.up import ports
from inferx.up.child import Child, service_command
from inferx.up.door import Door
from inferx.up.folder import Folder, claim
from inferx.up.settings import Settings, check_runtime, describe_gpus, node_document

# In the order of their start; they stop in the order of STOP_ORDER.
SERVICES = ("statesvc", "scheduler", "nodeagent", "gateway")
# Calls end first, then nothing new is decided, then the workers end, and the store is last.
STOP_ORDER = ("gateway", "scheduler", "nodeagent", "statesvc")
STOP_SECONDS = {"gateway": 35.0, "scheduler": 5.0, "nodeagent": 25.0, "statesvc": 5.0}
ADMIN_KEY = "INFERX_ADMIN_APIKEY"
READY_SECONDS = 60.0
PATIENCE_SECONDS = 2.0
STILL_OPEN = (
    f"calls are still open and have {STOP_SECONDS['gateway']:.0f} s to end; Ctrl-C again kills all"
)
POLL_SECONDS = 0.03
ECHO_SECONDS = 0.2
# Variables that point a service somewhere else than this machine's own node.json says.
FOREIGN = (
    "RUN_SERVICE", "POD_IP", "NODE_NAME", "ETCD_ADDR", "ETCD_ADDRS", "STATESVC_ADDR",
    "SCHEDULER_ADDR", "SCHEDULER_PORT", "STATESVC_PORT", "GATEWAY_PORT", "INFERX_DATA_DIR",
    "INFERX_LISTENER", "INFERX_LOG_FORMAT", "INFERX_LOG_LEVEL", "INFERX_LISTEN_FD",
    "INFERX_STOPPING_FD",
)  # fmt: skip


class Supervisor:
    """One running platform."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._started_ms = int(time.time() * 1000)
        self._children: dict[str, Child] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._admin_key = ""
        self._replacing = False
        self._door: Door | None = None
        self._url = f"http://{ports.LOOPBACK}:{settings.port}"

    async def run(self) -> None:
        """Runs the platform until SIGINT or SIGTERM; a second signal kills what still runs.

        Raises `InferxError` when it cannot start or a service keeps failing; everything that was
        started has ended by then, too.
        """
        begun = time.monotonic()
        folder = claim(self._settings.directory, self._say)
        try:
            self._door = Door(self._settings.port, self._gateway_stops)
            self._prepare(folder, self._door)
            self._handle_signals()
            await self._until_stopped(folder, begun)
        finally:
            if self._door is not None:
                self._door.close()  # whoever still comes is refused, not left waiting
            await self._stop_all()
            folder.release()

    def _prepare(self, folder: Folder, door: Door) -> None:
        self._say(f"data in {folder.path}, {describe_gpus(self._settings.gpus)}")
        internal = ports.free_ports(4)
        folder.write_config(node_document(self._settings, folder.path, internal))
        config.load(folder.config_file, {})  # an unusable setting shows here, not in four logs
        folder.rotate_logs()
        environment = config.environment()
        for name in FOREIGN:
            environment.pop(name, None)
        # Workers are kept when the agent is started again, and end only with the platform.
        environment["INFERX_STOP_PODS"] = "1"
        self._admin_key = self._find_admin_key(folder, environment)
        told = door.open()
        for name in SERVICES:
            self._children[name] = Child(
                name=name,
                command=service_command(name, folder.config_file),
                environment=self._environment_of(name, environment, told),
                log=folder.log_file(name),
                stop_seconds=STOP_SECONDS[name],
                say=self._say,
                on_start=lambda: self._record(folder),
                inherits=door.descriptors if name == "gateway" else (),
            )

    def _find_admin_key(self, folder: Folder, environment: dict[str, str]) -> str:
        """The first key of a platform that asks for keys: given, or made once and kept."""
        given = environment.pop(ADMIN_KEY, "")
        if given or not self._settings.auth:
            return given
        path, key = folder.admin_key()
        self._say(f"callers need a key; the first one is in {path}")
        return key

    def _environment_of(
        self, name: str, environment: dict[str, str], door: dict[str, str]
    ) -> dict[str, str]:
        """Only the gateway is told the admin's key and of its port."""
        if name != "gateway":
            return environment
        return {**environment, **door, **({ADMIN_KEY: self._admin_key} if self._admin_key else {})}

    def _record(self, folder: Folder) -> None:
        running = {n: c for n, c in self._children.items() if c.process is not None}
        folder.write_state(
            {
                "url": self._url,
                "pid": os.getpid(),
                "started_ms": self._started_ms,
                "pids": {n: c.process.pid for n, c in running.items() if c.process},
                "start_ticks": {n: c.ticks for n, c in running.items()},
            }
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stop.is_set():
                self._say("killing what still runs")
                for child in self._children.values():
                    child.kill()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._watch(self._replace_gateway()))

    def _gateway_stops(self, pid: int) -> None:
        """A gateway was told to stop by somebody else: the next one starts while it drains."""
        child = self._children["gateway"]
        if child.process is not None and child.process.pid == pid and not self._stop.is_set():
            self._watch(child.succeed())

    async def _replace_gateway(self) -> None:
        """Another gateway takes over; no call fails meanwhile."""
        child = self._children["gateway"]
        if child.process is None or self._replacing or self._stop.is_set():
            return
        self._replacing = True
        try:
            self._say("starting another gateway")
            taken_over = await child.replace(self._gateway_answers)
            self._say("the other gateway has taken over" if taken_over else "the old gateway stays")
        finally:
            self._replacing = False

    async def _gateway_answers(self) -> bool:
        """Whether the gateway started last becomes ready; both listen, so each answer says whose
        it is.
        """
        child = self._children["gateway"]
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and child.process and child.process.returncode is None:
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
                    answer = await client.get(f"{self._url}/readyz")
                whose = answer.headers.get("x-inferx-process")
                if answer.status_code == 200 and whose == str(child.process.pid):
                    return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _until_stopped(self, folder: Folder, begun: float) -> None:
        """Start, wait for a signal; the first task that fails ends it with its error."""
        starting = self._watch(self._start(folder, begun))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            ends: set[asyncio.Future[Any]] = {stopped, self._failure}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
        finally:
            # Nothing may be started any more once the services are being stopped.
            for task in (starting, stopped):
                task.cancel()
            await asyncio.gather(starting, stopped, return_exceptions=True)

    def _watch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` beside everything else; its error ends the platform."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) and not self._failure.done():
                self._failure.set_exception(error)

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        self._tasks.append(task)
        return task

    async def _start(self, folder: Folder, begun: float) -> None:
        document = config.load(folder.config_file, {})
        addresses = {
            "statesvc": document.statesvc_port,
            "scheduler": document.scheduler_port,
            "nodeagent": document.podmgr_port,
        }
        await self._spawn("statesvc")
        await self._listening("statesvc", addresses["statesvc"], begun)
        for name in SERVICES[1:]:
            await self._spawn(name)
        await asyncio.gather(
            *(self._listening(name, addresses[name], begun) for name in ("scheduler", "nodeagent")),
            self._ready(begun),
        )
        self._say(f"ready after {time.monotonic() - begun:.1f} s: {self._url}")
        if sys.stderr.isatty():
            self._say("Ctrl-C stops everything; in another terminal: inferx apply -f examples/")

    async def _spawn(self, name: str) -> None:
        child = self._children[name]
        await child.spawn()
        self._watch(child.keep_running())
        if self._settings.verbose:
            self._watch(self._echo(child))

    async def _listening(self, name: str, port: int, begun: float) -> None:
        """Waits until the service accepts connections."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(ports.LOOPBACK, port)
                writer.close()
                await writer.wait_closed()
                self._say(f"{name} is up after {time.monotonic() - begun:.1f} s (port {port})")
                return
            await asyncio.sleep(POLL_SECONDS)
        raise self._late(name, f"it does not listen on port {port}")

    async def _ready(self, begun: float) -> None:
        """Waits until the gateway is ready and knows a node that is."""
        deadline = time.monotonic() + READY_SECONDS
        said, answer = False, "no answer yet"
        headers = {"Authorization": f"Bearer {self._admin_key}"} if self._admin_key else {}
        async with httpx.AsyncClient(
            base_url=self._url, timeout=5.0, trust_env=False, headers=headers
        ) as client:
            while time.monotonic() < deadline:
                try:
                    response = await client.get("/nodes/" if said else "/readyz")
                    answer = f"HTTP {response.status_code}: {response.text[:300]}"
                    if response.status_code == 200 and said and _has_ready_node(response):
                        return
                    if response.status_code == 200 and not said:
                        said = True
                        spent = time.monotonic() - begun
                        self._say(f"gateway is ready after {spent:.1f} s ({self._url})")
                        continue
                except httpx.TransportError as error:
                    answer = str(error) or type(error).__name__
                await asyncio.sleep(POLL_SECONDS)
        raise self._late("nodeagent" if said else "gateway", f"last answer: {answer}")

    def _late(self, name: str, reason: str) -> StartFailed:
        child = self._children[name]
        return StartFailed(
            f"{name} is not ready after {READY_SECONDS:.0f} s ({reason}); "
            f"the end of {child.log}:\n{child.tail()}"
        )

    async def _echo(self, child: Child) -> None:
        """Copies what is appended to a log to the terminal."""
        with child.log.open("r", errors="replace") as log:
            while True:
                for line in log:
                    self._say(f"[{child.name}] {line.rstrip()}")
                await asyncio.sleep(ECHO_SECONDS)

    async def _stop_all(self) -> None:
        running = [n for n in STOP_ORDER if n in self._children and self._children[n].process]
        if running:
            self._say("stopping")
        hint = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._say, STILL_OPEN)
        for name in STOP_ORDER:
            if name in self._children:
                await self._children[name].stop()
                hint.cancel()  # the first to stop is the gateway, which lets its calls end
                if name == "nodeagent":
                    await self._end_workers(self._children[name])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if running:
            self._say("stopped")

    async def _end_workers(self, agent: Child) -> None:
        """Ends the workers of an agent that could not do so: killed, or stopped while it started.

        It is known by its exit status; another agent is run for it, which adopts and ends them.
        """
        if agent.process is None or agent.process.returncode == 0:
            return
        agent.environment["INFERX_STOP_PODS"] = "now"
        await agent.spawn()
        try:
            await asyncio.wait_for(agent.process.wait(), STOP_SECONDS["nodeagent"])
        except TimeoutError:
            agent.kill()
            await agent.process.wait()
        if agent.process.returncode != 0:
            self._say(f"workers may be left running; the end of {agent.log}:\n{agent.tail()}")


def _has_ready_node(response: httpx.Response) -> bool:
    return any(node["object"]["status"].get("state") == "Ready" for node in response.json())


def check(settings: Settings) -> None:
    """Raises the error that a start with these settings would end with at once."""
    if not 0 < settings.port < 65536:
        raise ConfigError(f"--port {settings.port}: expected a port from 1 to 65535")
    describe_gpus(settings.gpus)
    check_runtime(settings.runtime)


def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Runs the platform until it is told to stop. Raises `InferxError`."""
    check(settings)

    async def main() -> None:
        await Supervisor(settings, say).run()

    try:
        asyncio.run(main())
    except OSError as error:
        raise InferxError(f"the platform cannot run here: {error}") from error
    except KeyboardInterrupt as error:  # before the handlers were in place; nothing was started
        raise InferxError("interrupted") from error
