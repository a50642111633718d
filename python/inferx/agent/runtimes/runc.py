"""The `runc` runtime: a worker is a container with processes, mounts and an address of its own.

Must never leave a container, mount, namespace or helper process behind, whatever step fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx import procfs
from inferx.agent.logs import PodLog
from inferx.agent.runtimes import bundle, criu
from inferx.agent.runtimes.command import INHERITED, command_of
from inferx.agent.runtimes.criu import Criu, LazyPages
from inferx.agent.runtimes.images import Image, Images, means_host
from inferx.agent.runtimes.network import PodNetworks
from inferx.agent.runtimes.protocol import Checkpoints, Worker, WorkerSpec
from inferx.agent.runtimes.rootfs import RootFs
from inferx.agent.runtimes.runc_worker import Container as Box
from inferx.agent.runtimes.runc_worker import RuncWorker
from inferx.domain.function import FunctionSpec
from inferx.errors import BadRequest, ConfigError, InferxError, StartFailed

log = logging.getLogger("inferx.agent.runc")

ANY_HOST = "0.0.0.0"  # noqa: S104 - in a network namespace of its own
STATE_ROOT = Path("/run/inferx/runc")
START_BOUND_S = 60.0
POLL_S = 0.003
PLATFORM_ENVIRONMENT = {"UV_USE_IO_URING": "0"}  # io_uring cannot be saved


@dataclass(frozen=True)
class Places:
    """Where the runtime finds and keeps things; `hidden` folders are not shown to workers."""

    work_dir: Path
    images: Path
    pod_cidr: str
    hidden: Sequence[Path] = ()


class RuncRuntime:
    """Starts, restores and adopts containers. Needs root."""

    name = "runc"
    listen_host = ANY_HOST
    freeze_frees_gpu = False

    def __init__(self, places: Places, environment: Mapping[str, str]) -> None:
        path = environment.get("PATH") or os.defpath
        found = shutil.which("runc", path=path)
        if found is None:
            raise ConfigError("runtime: runc is not installed on this node")
        if os.geteuid() != 0:
            raise ConfigError(
                "runtime: runc needs root, for mounts, network namespaces and checkpoints; the"
                " process runtime does not"
            )
        self._criu = criu.find(path)
        if self._criu is None:
            log.warning("no CRIU >= 4.2: no snapshots on this node; see scripts/install-criu")
        self.checkpoints: Checkpoints | None = (
            None if self._criu is None else RuncCheckpoints(self, self._criu)
        )
        self._places = places
        self._inherited = {name: environment[name] for name in INHERITED if name in environment}
        self._inherited.setdefault("PATH", path)
        self._images = Images(places.images)
        self._networks = PodNetworks(places.pod_cidr)
        tool_path = self._criu.path if self._criu is not None else path
        self._environment = {"PATH": tool_path, "HOME": environment.get("HOME", "/root")}
        STATE_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._runc = (found, "--root", str(STATE_ROOT))

    def check(self, launch: FunctionSpec) -> None:
        self._images.check(launch.image)
        if not launch.entrypoint and means_host(launch.image):
            raise BadRequest(
                "spec.entrypoint: needed with this machine's own root as the image; name a program"
                " of this machine, for example $(INFERX_PYTHON)"
            )

    def port_for(self, launch: FunctionSpec, taken: Container[int]) -> int:
        return launch.endpoint.port  # each has an address of its own

    async def start(self, spec: WorkerSpec) -> Worker:
        container = self._container(spec.folder)
        try:
            _make_folders(container)
            await self._prepare(spec, container)
            return await self._launch(container, ("run", "--keep"), None)
        except BaseException:
            await container.remove()
            raise

    async def restore(self, spec: WorkerSpec, image: Path, tool: Criu) -> Worker:
        """A worker from an image of CRIU; its pages come as they are touched."""
        container = self._container(spec.folder)
        upper = image / UPPER
        try:
            _make_folders(container)
            serving = asyncio.create_task(LazyPages.start(tool, image, container.criu_work))
            try:
                await self._prepare(spec, container, upper if upper.exists() else None)
            finally:
                container.lazy = await serving
            places = ("--image-path", str(image), "--work-path", str(container.criu_work))
            return await self._launch(
                container,
                ("restore", "--lazy-pages", *places),
                lambda: criu.reason(container.criu_work / "restore.log"),
            )
        except BaseException:
            await container.remove()
            raise

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> Worker | None:
        container = self._container(folder)
        supervisors = await asyncio.to_thread(
            procfs.find_argument, "--bundle", str(container.folder)
        )
        init = await container.running_pid()
        if init is None or not supervisors:
            await container.remove()
            return None
        networks = self._networks.of(folder)
        if len(networks) != 1:
            await container.remove()
            return None
        container.network = networks[0]
        container.lazy = LazyPages.adopt(container.criu_work)
        try:
            return RuncWorker(container, supervisors[0], init)
        except ProcessLookupError:
            await container.remove()
            return None

    async def close(self) -> None:
        """Nothing is held."""

    def image_of(self, launch: FunctionSpec) -> Image:
        """The image that the function's workers run in."""
        return self._images.resolve(launch.image)

    def _container(self, folder: Path) -> Box:
        return Box(folder, self._runc, self._environment, self._networks)

    async def _prepare(self, spec: WorkerSpec, box: Box, upper: Path | None = None) -> None:
        image = await asyncio.to_thread(self.image_of, spec.launch)
        try:
            async with asyncio.TaskGroup() as side_by_side:
                creating = side_by_side.create_task(self._networks.create(spec.folder))
                side_by_side.create_task(RootFs(box.folder).mount(image.root, upper))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        box.network = network = creating.result()
        given = {**self._inherited, **image.environment, **PLATFORM_ENVIRONMENT}
        argv, environment = command_of(spec, given, (image.entrypoint, image.command))
        if not argv:
            raise BadRequest(f"spec.entrypoint: needed, image {spec.launch.image!r} has none")
        described = bundle.Box(
            name=box.name,
            image=image,
            network=network,
            criu_config=box.criu_config,
            work_dir=self._places.work_dir,
            hidden=self._places.hidden,
        )
        content = bundle.configuration(spec, described, argv, environment)
        (box.folder / "config.json").write_text(json.dumps(content))
        (box.folder / "config.json").chmod(0o600)  # it holds the function's secrets
        box.configure_criu()

    async def _launch(
        self, box: Box, verb: Sequence[str], why: Callable[[], str] | None
    ) -> RuncWorker:
        """Start the supervisor of the container and wait until the container runs."""
        report = box.folder / "runc.log"
        pid_file = box.folder / "pid"
        argv = [*self._runc, "--log", str(report), *verb]
        argv += ["--bundle", str(box.folder), "--pid-file", str(pid_file), box.name]
        popen = await asyncio.to_thread(_spawn, argv, self._environment, box.pod_folder)
        deadline = time.monotonic() + START_BOUND_S
        while not pid_file.exists():
            if popen.poll() is not None or time.monotonic() > deadline:
                if popen.poll() is None:
                    popen.kill()
                    popen.wait()
                reasons = [why() if why is not None else "", _reason(report)]
                raise StartFailed("; ".join(part for part in reasons if part) or "runc failed")
            await asyncio.sleep(POLL_S)
        pid = int(pid_file.read_text())
        return RuncWorker(box, popen.pid, pid, popen)


UPPER = "upper.tar"


class RuncCheckpoints:
    """Saving and restoring through `runc checkpoint` and `runc restore`."""

    def __init__(self, runtime: RuncRuntime, tool: Criu) -> None:
        self._runtime = runtime
        self._criu = tool

    def identity(self, launch: FunctionSpec) -> Mapping[str, Any]:
        return {
            "kernel": os.uname().release,
            "criu": self._criu.version,
            "image": self._runtime.image_of(launch).digest,
            "runtime": self._runtime.name,
        }

    async def save(self, worker: Worker, target: Path) -> None:
        if not isinstance(worker, RuncWorker):
            raise TypeError(f"not a container of runc: {worker!r}")
        container = worker.container
        # 1. Whatever can be known to fail is found before the worker is paused.
        await asyncio.to_thread(criu.check_saveable, container.pids())
        needed = container.memory_bytes() + RootFs(container.folder).size_bytes
        criu.check_space(target, needed)
        # 2. The files that it wrote are stored while it is paused, together with its memory.
        container.configure_criu(RootFs(container.folder).save_command(target / UPPER))
        places = ["--image-path", str(target), "--work-path", str(container.criu_work)]
        try:
            await container.runc("checkpoint", "--leave-running", *places, container.name)
        except InferxError as error:
            reason = criu.reason(container.criu_work / "dump.log")
            raise InferxError(f"it cannot be saved: {reason or error.message}") from error
        finally:
            container.configure_criu()

    async def restore(self, spec: WorkerSpec, image: Path) -> Worker:
        return await self._runtime.restore(spec, image, self._criu)


def _make_folders(box: Box) -> None:
    for folder in (box.folder, box.criu_work):
        folder.mkdir(mode=0o700, exist_ok=True)


def _spawn(
    argv: Sequence[str], environment: Mapping[str, str], pod_folder: Path
) -> subprocess.Popen[bytes]:
    output = PodLog(pod_folder).open_for_worker()
    try:
        return subprocess.Popen(  # noqa: S603 - runc, with arguments of our own
            argv,
            cwd=pod_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _reason(report: Path) -> str:
    """The last error in runc's own log."""
    try:
        lines = report.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if "level=error" in line or "level=fatal" in line:
            return line.partition("msg=")[2].strip('"').replace('\\"', '"')
    return ""
