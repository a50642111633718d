"""Which folders of a node a function may mount: for tenants, those that the platform offers.

Must never look at a file system; the node is another machine.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

from inferx.auth import Place, Principal, allowed
from inferx.domain.meta import Object
from inferx.domain.objects import FunctionSpec
from inferx.errors import Forbidden


def check_mounts(caller: Principal, obj: Object[Any], roots: Sequence[str]) -> None:
    """Raises `Forbidden` naming the mount; who manages the platform may mount everything."""
    spec = obj.spec
    if not isinstance(spec, FunctionSpec) or allowed(caller, "function.mount", Place()):
        return
    if spec.mount_files:
        raise Forbidden("object.spec.mountfiles: only a platform admin may mount files of a node")
    for number, mount in enumerate(spec.mounts):
        if not any(_is_below(mount.host_path, root) for root in roots):
            offered = ", ".join(roots) or "none"
            raise Forbidden(
                f"object.spec.mounts[{number}].hostpath: {mount.host_path!r} is not below a "
                f"folder that tenants may mount (mountRoots: {offered})"
            )


def _is_below(path: str, root: str) -> bool:
    """Whether a path that says what it means is a root or below it, names compared whole."""
    if not path.startswith("/") or posixpath.normpath(path) != path.rstrip("/"):
        return False
    root = posixpath.normpath(root)
    return path == root or path.startswith(f"{root.rstrip('/')}/")
