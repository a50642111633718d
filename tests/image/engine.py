"""A Docker engine of the tests' own: its data, socket and networks are gone with it.

Must never touch the machine's firewall, its default bridge, or another engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "image-test"
START_SECONDS = 60.0


class Engine:
    """A running dockerd; `docker` and `compose` talk to it."""

    def __init__(self) -> None:
        for program in ("dockerd", "docker", "docker-compose", "debootstrap"):
            assert shutil.which(program), f"{program} is missing; run tests/image/install"
        # Short: the path of a Unix socket has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="inferx-docker-"))
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.folder}/sock"}
        self._log = self.folder / "log"
        command = [
            "dockerd", "--data-root", str(self.folder / "data"), "--exec-root",
            str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"), "--host",
            f"unix://{self.folder}/sock", "--bridge", "none", "--iptables=false",
            "--ip-forward=false",
        ]  # fmt: skip
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while "API listen on" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.1)  # between looks at the log, until the deadline

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Runs the client; its output."""
        return self._run(["docker", *arguments], check, None)

    def compose(self, folder: Path, *arguments: str, **variables: str) -> str:
        """Runs docker-compose in the folder of a project."""
        environment = {**self.environment, **variables}
        done = subprocess.run(
            ["docker-compose", "-p", "ix", *arguments], cwd=folder, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"compose {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def import_tree(self, tree: Path, name: str) -> None:
        """An image of one layer from a folder."""
        command = ["tar", "-C", str(tree), "-c", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as packed:
            self._run(["docker", "import", "-", name], True, packed.stdout)
        assert packed.returncode == 0

    def build(self, name: str, dockerfile: str, files: Path) -> None:
        """An image from a Dockerfile's text and a folder of files."""
        path = files / "Dockerfile"
        path.write_text(dockerfile)
        self.docker("build", "-q", "-t", name, str(files))

    def kill_like_a_crash(self, container: str) -> None:
        """SIGKILL for everything in the container; `docker kill` would count as a wanted stop."""
        pid = int(self.docker("inspect", "-f", "{{.State.Pid}}", container))
        assert pid > 1
        os.kill(pid, 9)

    def stop(self) -> None:
        """Ends all containers and the engine, and removes its data."""
        running = self.docker("ps", "-aq", check=False).split()
        if running:
            self.docker("rm", "-f", *running, check=False)
        for network in self.docker("network", "ls", "-q", "-f", "type=custom").split():
            self.docker("network", "rm", network, check=False)
        self._process.terminate()
        self._process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], check: bool, source: object) -> str:
        done = subprocess.run(
            command, env=self.environment, stdin=source, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr if "logs" in command else done.stdout).strip()


def bootstrap(name: str, *packages: str) -> Path:
    """A Debian system with these packages, made once and kept in the cache."""
    final = CACHE / name
    if not final.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = CACHE / f"{name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        include = ",".join(("python3", "ca-certificates", "libgomp1", *packages))
        command = ["debootstrap", "--variant=minbase", f"--include={include}", "bookworm"]
        subprocess.run([*command, str(unfinished)], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(unfinished / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(unfinished / "var/lib/apt/lists", ignore_errors=True)
        unfinished.rename(final)
    return final
