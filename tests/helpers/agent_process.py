"""A stand-in agent in a process of its own, to be killed or frozen: `start()` -> process, node.

As a program it serves until it is ended, after one line with its two ports.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from inferx.domain.objects import Node
from tests.helpers.fake_agent import FakeAgent

ROOT = Path(__file__).resolve().parent.parent.parent


async def start() -> tuple[subprocess.Popen[bytes], Node]:
    """A running one and the node that it would register."""
    process, line = await asyncio.to_thread(_spawn)
    pods, state = map(int, line.split())
    stand_in = FakeAgent()
    node = replace(await stand_in.start(), podmgr_port=pods, state_port=state)
    await stand_in.stop()
    return process, node


def _spawn() -> tuple[subprocess.Popen[bytes], bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.agent_process"], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


async def _serve() -> None:
    node = await FakeAgent().start()
    print(node.podmgr_port, node.state_port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
