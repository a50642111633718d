"""The `runc` runtime: containers of runc, and their images by CRIU.

Must never save a worker before it is known that this can work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferx.agent.runtimes import criu, criucache
from inferx.agent.runtimes.boxes import Boxes, Places, launch
from inferx.agent.runtimes.container import ContainerWorker
from inferx.agent.runtimes.criu import Criu, LazyPages
from inferx.agent.runtimes.engine import RuncEngine
from inferx.agent.runtimes.protocol import Checkpoints, Worker, WorkerSpec
from inferx.agent.runtimes.rootfs import RootFs
from inferx.domain.function import FunctionSpec
from inferx.errors import ConfigError, InferxError

log = logging.getLogger("inferx.agent.runc")

STATE_ROOT = Path("/run/inferx/runc")
UPPER = "upper.tar"


class RuncRuntime(Boxes):
    """Containers of runc; with a CRIU that is new enough they can be saved."""

    name = "runc"

    def __init__(self, places: Places, environment: Mapping[str, str]) -> None:
        path = environment.get("PATH") or os.defpath
        found = shutil.which("runc", path=path)
        if found is None:
            raise ConfigError("runtime: runc is not installed on this node")
        tool = criu.find(path)
        given = {
            # runc looks for CRIU itself.
            "PATH": tool.path if tool is not None else path,
            "HOME": environment.get("HOME", "/root"),
        }
        self.engine = RuncEngine(found, STATE_ROOT, given)
        super().__init__(self.engine, places, environment)
        STATE_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.checkpoints: Checkpoints | None = None
        if tool is None:
            log.warning("no CRIU >= 4.2: no snapshots on this node; see scripts/install-criu")
        else:
            criucache.keep(tool.program)
            self.checkpoints = RuncCheckpoints(self, tool)


class RuncCheckpoints:
    """Saving and restoring through `runc checkpoint` and `runc restore`. What is restored is a
    container of runc, whatever engine the saved one was run by."""

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
        if not isinstance(worker, ContainerWorker):
            raise TypeError(f"not a container: {worker!r}")
        container = worker.container
        # 1. Whatever can be known to fail is found before the worker is paused.
        await asyncio.to_thread(criu.check_saveable, container.pids())
        needed = container.memory_bytes() + RootFs(container.folder).size_bytes
        criu.check_space(target, needed)
        # 2. The files that it wrote are stored while it is paused, together with its memory.
        container.configure_criu(RootFs(container.folder).save_command(target / UPPER))
        try:
            await container.engine.save(container.name, target, container.criu_work)
        except InferxError as error:
            reason = criu.reason(container.criu_work / "dump.log")
            raise InferxError(f"it cannot be saved: {reason or error.message}") from error
        finally:
            container.configure_criu()

    async def restore(self, spec: WorkerSpec, image: Path) -> Worker:
        """Its pages come as they are touched."""
        container = self._runtime.container(spec.folder)
        container.make_folders()
        upper = image / UPPER
        places = ("--image-path", str(image), "--work-path", str(container.criu_work))
        try:
            serving = asyncio.create_task(LazyPages.start(self._criu, image, container.criu_work))
            try:
                await self._runtime.prepare(spec, container, upper if upper.exists() else None)
            finally:
                container.lazy = await serving
            verb = ("restore", "--lazy-pages", *places)
            return await launch(
                container,
                self._runtime.engine.start(container.folder, container.name, verb),
                lambda: criu.reason(container.criu_work / "restore.log"),
            )
        except BaseException:
            await container.remove()
            raise
