"""Finds the root folder that an image's name means on this node, and unpacks it once.

Must never fetch anything: images are put into the node's image folder by who runs the node.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferx.errors import BadRequest

HOST_PREFIX = "local/"
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Image:
    """A root folder and how its maker wants it to be run; `digest` tells images apart."""

    root: Path
    digest: str
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    work_dir: str = ""

    @property
    def is_host(self) -> bool:
        """Whether it is this machine's own root."""
        return self.root == Path("/")


class Images:
    """`folder/NAME` (also `folder/NAME.tar`): a root folder, a tar of one, or an image layout of
    the Open Container Initiative; `:` in a name is kept. Unpacked ones lie in `folder/.unpacked`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unpacked = folder / ".unpacked"

    def check(self, name: str) -> None:
        """Raise BadRequest when there is no such image here."""
        if not means_host(name):
            self._source(name)

    def resolve(self, name: str) -> Image:
        """The image of that name; takes as long as unpacking does, the first time."""
        if means_host(name):
            return Image(Path("/"), "host")
        source = self._source(name)
        try:
            if (source / "oci-layout").is_file():
                return self._from_layout(source)
            if source.is_file():
                return self._from_archive(source)
        except (OSError, ValueError, KeyError, tarfile.TarError) as error:
            raise BadRequest(f"spec.image: {source} cannot be used: {error}") from error
        # A plain folder has no digest; its files are compared by CRIU, one by one, when restored.
        return Image(source, f"folder:{source}")

    def _source(self, name: str) -> Path:
        if ".." in Path(name).parts:
            raise BadRequest(f"spec.image: {name!r} leads out of the image folder")
        for candidate in (self._folder / name, self._folder / f"{name}.tar"):
            if candidate.exists():
                return candidate.resolve()
        raise BadRequest(
            f"spec.image: {name!r} is not on this node: no folder or .tar of that name in"
            f" {self._folder} (names that begin with {HOST_PREFIX} mean this machine's own root)"
        )

    def _from_archive(self, archive: Path) -> Image:
        digest = _file_digest(archive)
        with tarfile.open(archive) as tar:
            is_layout = any(Path(name) == Path("oci-layout") for name in tar.getnames())
        if is_layout:
            layout = self._once(f"layout-{digest}", lambda to: _extract(archive, to))
            return self._from_layout(layout)
        root = self._once(digest, lambda to: _extract(archive, to))
        return Image(root, f"sha256:{digest}")

    def _from_layout(self, layout: Path) -> Image:
        manifest = _manifest(layout)
        digest = str(manifest["config"]["digest"])
        config = json.loads(_blob(layout, digest).read_text()).get("config", {})
        layers = [_blob(layout, layer["digest"]) for layer in manifest["layers"]]

        def unpack(to: Path) -> None:
            for layer in layers:
                _apply_layer(layer, to)

        return Image(
            root=self._once(digest.replace(":", "-"), unpack),
            digest=digest,
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            environment=dict(entry.split("=", 1) for entry in config.get("Env") or ()),
            work_dir=str(config.get("WorkingDir") or ""),
        )

    def _once(self, name: str, unpack: Any) -> Path:
        """The folder of that name; made by `unpack` under another name first, so it is whole."""
        ready = self._unpacked / name
        if ready.is_dir():
            return ready
        self._unpacked.mkdir(mode=0o700, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="new-", dir=self._unpacked))
        temporary.chmod(0o755)
        try:
            unpack(temporary)
            temporary.rename(ready)
        except OSError:
            if not ready.is_dir():  # otherwise somebody else was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return ready


def means_host(name: str) -> bool:
    """Whether the name means this machine's own root."""
    return not name or name.startswith(HOST_PREFIX)


def _manifest(layout: Path) -> dict[str, Any]:
    """The layout's manifest; of an index of platforms, this machine's."""
    document = json.loads((layout / "index.json").read_text())
    while "manifests" in document:
        entries = document["manifests"]
        fitting = [
            entry
            for entry in entries
            if entry.get("platform", {}).get("architecture", _ARCHITECTURE) == _ARCHITECTURE
        ]
        if not fitting:
            raise ValueError(f"it has nothing for {_ARCHITECTURE}")
        document = json.loads(_blob(layout, fitting[0]["digest"]).read_text())
    return dict(document)


_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _blob(layout: Path, digest: str) -> Path:
    """A blob of the layout, its content checked against its name."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or not value.isalnum():
        raise ValueError(f"digest {digest!r} is not a sha256 one")
    path = layout / "blobs" / algorithm / value
    if _file_digest(path) != value:
        raise ValueError(f"blob {digest} does not have the content that its name promises")
    return path


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _extract(archive: Path, to: Path) -> None:
    with tarfile.open(archive) as tar:
        # The filter refuses what leads outside.
        tar.extractall(to, filter=_safe)  # noqa: S202 # nosec B202


def _safe(member: tarfile.TarInfo, to: str) -> tarfile.TarInfo | None:
    # Devices are the runtime's business, and links may be absolute: they mean the new root's.
    if member.ischr() or member.isblk():
        return None
    if member.issym() and member.linkname.startswith("/"):
        tarfile.tar_filter(member.replace(linkname="."), to)
        return member
    return tarfile.tar_filter(member, to)


def _apply_layer(layer: Path, to: Path) -> None:
    """Put a layer over what is there; its whiteouts remove what earlier layers brought."""
    with tarfile.open(layer) as tar:
        for member in tar:
            name = Path(member.name).name
            folder = to / Path(member.name).parent
            if not folder.resolve().is_relative_to(to.resolve()):
                raise ValueError(f"{layer.name}: {member.name} leads outside of the root")
            if name == _OPAQUE:
                for entry in folder.iterdir() if folder.is_dir() else ():
                    _remove(entry)
            elif name.startswith(_WHITEOUT):
                _remove(folder / name.removeprefix(_WHITEOUT))
            else:
                target = to / member.name
                if target.is_symlink() or (target.exists() and not member.isdir()):
                    _remove(target)
                tar.extract(member, to, filter=_safe)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
