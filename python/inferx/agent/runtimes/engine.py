"""What runs containers on a node: runc itself, or containerd over its command line.

Must never decide anything; a container is described by its folder and has a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inferx.agent.runtimes import tools

NAMESPACE = "inferx"  # containerd's; runc's state of its containers lies in a folder of that name


@dataclass(frozen=True)
class ContainerState:
    """What an engine knows of a container; `pid` is its first process on this machine."""

    status: str  # running, paused, or another word
    pid: int

    @property
    def is_live(self) -> bool:
        """Whether its processes exist."""
        return self.status in ("running", "paused")


class Engine(Protocol):
    """Commands of an engine; they raise ToolFailed."""

    name: str
    environment: Mapping[str, str]

    def run(self, folder: Path, name: str) -> list[str]:
        """The command that runs the container in the foreground, as its parent: its output and
        exit code are the container's, and it writes the first process's number to `folder/pid`."""

    async def is_started(self, name: str) -> bool:
        """Whether a container that has a first process runs its own program."""

    async def state(self, name: str) -> ContainerState | None:
        """The container as it is now; None when the engine does not know it, and only then."""

    async def pause(self, name: str) -> None:
        """Freeze all its processes."""

    async def resume(self, name: str) -> None:
        """Let them go on."""

    async def kill(self, name: str, signal: str) -> None:
        """Send a signal, such as TERM, to its first process."""

    async def save(self, name: str, image: Path, work: Path) -> None:
        """Have CRIU write its image, with CRIU's log in `work`; it runs on."""

    async def delete(self, name: str) -> None:
        """Kill and remove it; one that is not there is fine."""


class RuncEngine:
    """runc, with its state in a folder of ours."""

    name = "runc"

    def __init__(self, program: str, state_root: Path, environment: Mapping[str, str]) -> None:
        self.program = program
        self.environment = environment
        self._state_root = state_root
        self._runc = (program, "--root", str(state_root))

    def run(self, folder: Path, name: str) -> list[str]:
        return self.start(folder, name, ("run", "--keep"))

    def start(self, folder: Path, name: str, verb: Sequence[str]) -> list[str]:
        """The same for `run` or `restore` with their own options."""
        argv = [*self._runc, "--log", str(folder / "runc.log"), *verb]
        return [*argv, "--bundle", str(folder), "--pid-file", str(folder / "pid"), name]

    async def is_started(self, name: str) -> bool:
        return True  # the number is written after the start

    async def state(self, name: str) -> ContainerState | None:
        try:
            state = json.loads(await self._command("state", name))
        except tools.ToolFailed as error:
            # A folder without content is what a start that was cut off leaves behind.
            unknown = "does not exist" in error.message
            if unknown or not (self._state_root / name).exists():
                return None
            raise
        return ContainerState(str(state["status"]), int(state["pid"]))

    async def pause(self, name: str) -> None:
        await self._command("pause", name)

    async def resume(self, name: str) -> None:
        await self._command("resume", name)

    async def kill(self, name: str, signal: str) -> None:
        await self._command("kill", name, signal)

    async def save(self, name: str, image: Path, work: Path) -> None:
        places = ["--image-path", str(image), "--work-path", str(work)]
        await self._command("checkpoint", "--leave-running", *places, name)

    async def delete(self, name: str) -> None:
        await self._command("delete", "--force", name)

    async def _command(self, *arguments: str) -> str:
        return await tools.run([*self._runc, *arguments], environment=self.environment)


class CtrEngine:
    """containerd through `ctr`, in a namespace of its own. Its shims use the given runc, with their
    state below `runc_root`: so runc can be asked to save what they run."""

    name = "containerd"

    def __init__(
        self,
        program: str,
        socket: Path,
        environment: Mapping[str, str],
        runc: RuncEngine,
        runc_root: Path,
    ) -> None:
        self.environment = environment
        self._ctr = (program, "--address", str(socket), "--namespace", NAMESPACE)
        self._shims = ("--runc-binary", runc.program, "--runc-root", str(runc_root))
        self._beneath = RuncEngine(runc.program, runc_root / NAMESPACE, runc.environment)

    def run(self, folder: Path, name: str) -> list[str]:
        argv = [*self._ctr, "run", *self._shims, "--config", str(folder / "config.json")]
        return [*argv, "--pid-file", str(folder / "pid"), name]

    async def is_started(self, name: str) -> bool:
        state = await self.state(name)  # the number is written before the start
        return state is None or state.status != "created"

    async def state(self, name: str) -> ContainerState | None:
        for line in (await self._command("tasks", "ls")).splitlines()[1:]:
            words = line.split()
            if len(words) == 3 and words[0] == name:
                return ContainerState(words[2].lower(), int(words[1]))
        return None

    async def pause(self, name: str) -> None:
        await self._command("tasks", "pause", name)

    async def resume(self, name: str) -> None:
        await self._command("tasks", "resume", name)

    async def kill(self, name: str, signal: str) -> None:
        await self._command("tasks", "kill", "--signal", signal, name)

    async def save(self, name: str, image: Path, work: Path) -> None:
        # containerd's own way packs the image into its content store, which takes half a minute.
        await self._beneath.save(name, image, work)

    async def delete(self, name: str) -> None:
        if await self.state(name) is not None:
            try:
                await self._command("tasks", "delete", "--force", name)
            except tools.ToolFailed:
                # Its command line returns the exit code of the task, so only a look tells.
                if await self.state(name) is not None:
                    raise
        if name in (await self._command("containers", "ls", "--quiet")).split():
            await self._command("containers", "delete", name)

    async def _command(self, *arguments: str) -> str:
        return await tools.run([*self._ctr, *arguments], environment=self.environment)
