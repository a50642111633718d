"""What runtimes have in common that build their containers here: root, network, configuration.

Must never leave a container, mount, namespace or helper process behind, whatever step fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx import procfs
from inferx.agent.runtimes import bundle, processes
from inferx.agent.runtimes.command import INHERITED, LINK, command_of
from inferx.agent.runtimes.container import Container as Box
from inferx.agent.runtimes.container import ContainerWorker
from inferx.agent.runtimes.criu import LazyPages
from inferx.agent.runtimes.engine import Engine
from inferx.agent.runtimes.images import Image, Images, means_host
from inferx.agent.runtimes.network import PodNetworks
from inferx.agent.runtimes.protocol import Worker, WorkerSpec
from inferx.agent.runtimes.rootfs import RootFs
from inferx.domain.function import FunctionSpec
from inferx.errors import BadRequest, ConfigError, StartFailed

ANY_HOST = "0.0.0.0"  # noqa: S104 # nosec B104 - in a network namespace of its own
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


class Boxes:
    """Starts and adopts containers of an engine. Needs root."""

    name = "boxes"
    listen_host = ANY_HOST

    def __init__(self, engine: Engine, places: Places, environment: Mapping[str, str]) -> None:
        if os.geteuid() != 0:
            raise ConfigError(
                f"runtime: {self.name} needs root, for mounts, network namespaces and checkpoints;"
                " the process runtime does not"
            )
        self._engine = engine
        self._places = places
        self._inherited = {name: environment[name] for name in INHERITED if name in environment}
        self._inherited.setdefault("PATH", os.defpath)
        self._images = Images(places.images)
        self._networks = PodNetworks(places.pod_cidr)

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
        container = self.container(spec.folder)
        try:
            await self.prepare(spec, container)
            return await launch(container, self._engine.run(container.folder, container.name))
        except BaseException:
            await container.remove()
            raise

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> Worker | None:
        container = self.container(folder)
        supervisors = await asyncio.to_thread(procfs.find_argument, *container.mark)
        init = await container.running_pid()
        networks = self._networks.of(folder)
        if init is None or not supervisors or len(networks) != 1:
            await container.remove()
            return None
        container.network = networks[0]
        container.lazy = LazyPages.adopt(container.criu_work)
        try:
            return ContainerWorker(container, supervisors[0], init)
        except ProcessLookupError:
            await container.remove()
            return None

    async def close(self) -> None:
        """Leave no route behind when the last container is gone."""
        await self._networks.close()

    def image_of(self, launch: FunctionSpec) -> Image:
        """The image that the function's workers run in."""
        return self._images.resolve(launch.image)

    def container(self, folder: Path) -> Box:
        """The container of a pod's folder, whether it exists or not."""
        return Box(folder, self._engine, self._networks)

    async def prepare(self, spec: WorkerSpec, box: Box, upper: Path | None = None) -> None:
        """Make its network, root and configuration; `upper` is what a saved one had written."""
        box.make_folders()
        image = await asyncio.to_thread(self.image_of, spec.launch)
        try:
            async with asyncio.TaskGroup() as side_by_side:
                creating = side_by_side.create_task(self._networks.create(spec.folder))
                side_by_side.create_task(RootFs(box.folder).mount(image.root, upper))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        box.network = network = creating.result()
        given = {**self._inherited, **image.environment, **PLATFORM_ENVIRONMENT}
        argv, environment = command_of(spec, given, (image.entrypoint, image.command), link=LINK)
        if not argv:
            raise BadRequest(f"spec.entrypoint: needed, image {spec.launch.image!r} has none")
        described = bundle.Box(
            name=box.name,
            root=RootFs(box.folder).path,
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


async def launch(
    box: Box, argv: Sequence[str], why: Callable[[], str] = lambda: ""
) -> ContainerWorker:
    """Start the supervisor of the container and wait until the container runs.

    Raises StartFailed with the engine's reason, and with `why` if that says something.
    """
    pid_file = box.folder / "pid"
    popen = await asyncio.to_thread(
        processes.spawn, argv, box.engine.environment, box.pod_folder, box.pod_folder
    )
    deadline = time.monotonic() + START_BOUND_S
    while not (_written(pid_file) and await box.engine.is_started(box.name)):
        if popen.poll() is not None or time.monotonic() > deadline:
            if popen.poll() is None:
                popen.kill()
                popen.wait()
            reasons = [why(), box.reason()]
            raise StartFailed("; ".join(part for part in reasons if part) or f"{argv[0]} failed")
        await asyncio.sleep(POLL_S)
    return ContainerWorker(box, popen.pid, int(pid_file.read_text()), popen)


def _written(pid_file: Path) -> bool:
    return pid_file.exists() and pid_file.stat().st_size > 0
