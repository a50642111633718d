"""`runc` and `criu` that fail or hang when a test says so, and are the real ones otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from inferx.agent.runtimes import criu

_VERBS = "run|restore|checkpoint|pause|resume|kill|delete|state|list|lazy-pages|swrk|check"
_SCRIPT = """#!/bin/sh
for word in "$@"; do
  case $word in {verbs}) verb=$word; break ;; esac
done
if [ -e {folder}/fail-{tool}-$verb ]; then echo "level=error msg=made-to-fail" >&2; exit 1; fi
if [ -e {folder}/hang-{tool}-$verb ]; then
  : > {folder}/hung
  while [ -e {folder}/hang-{tool}-$verb ]; do sleep 0.02; done
fi
exec {real} "$@"
"""


class FaultyTools:
    """A folder for the front of PATH."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        real = {"runc": shutil.which("runc")}
        found = criu.find(os.environ["PATH"])
        real["criu"] = found.program if found is not None else None
        for tool, program in real.items():
            assert program is not None, f"no {tool} here; run scripts/test-deps"
            script = folder / tool
            script.write_text(_SCRIPT.format(verbs=_VERBS, folder=folder, tool=tool, real=program))
            script.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with these tools first."""
        return os.pathsep.join((str(self._folder), os.environ["PATH"]))

    def fail(self, what: str) -> None:
        """From now on, `what` (such as `runc-checkpoint`) fails."""
        (self._folder / f"fail-{what}").touch()

    def hang(self, what: str) -> None:
        """From now on, `what` waits before it does anything."""
        (self._folder / f"hang-{what}").touch()

    @property
    def hung(self) -> bool:
        """Whether something waits, or has waited."""
        return (self._folder / "hung").exists()

    def heal(self) -> None:
        """All tools work again, and what waited goes on."""
        for mark in (*self._folder.glob("fail-*"), *self._folder.glob("hang-*")):
            mark.unlink()
        (self._folder / "hung").unlink(missing_ok=True)
