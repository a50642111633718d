"""Images of a node's image folder: root folders, tars, and layouts with layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from inferx.agent.runtimes.images import Images
from inferx.errors import BadRequest


def tar_of(**files: str) -> bytes:
    """A tar of files by path (`__` stands for `/`), and of a link to an absolute place."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return data.getvalue()


def blob(layout: Path, data: bytes) -> dict[str, object]:
    """Put a blob into the layout; its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    folder = layout / "blobs/sha256"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def make_layout(layout: Path) -> None:
    layers = [
        tar_of(etc__a="one", etc__b="two", opt__x__y="deep"),
        gzip.compress(
            tar_of(**{"etc__.wh.a": "", "etc__b": "changed", "opt__x__.wh..wh..opq": ""})
        ),
    ]
    config = {
        "Entrypoint": ["/bin/serve"],
        "Cmd": ["--fast"],
        "Env": ["MODEL=m", "EMPTY="],
        "WorkingDir": "/srv",
    }
    manifest = {
        "config": blob(layout, json.dumps({"config": config}).encode()),
        "layers": [blob(layout, layer) for layer in layers],
    }
    index = {"manifests": [blob(layout, json.dumps(manifest).encode())]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def test_a_layout_is_unpacked_layer_by_layer(tmp_path: Path) -> None:
    make_layout(tmp_path / "team" / "model:1")
    image = Images(tmp_path).resolve("team/model:1")
    assert not (image.root / "etc/a").exists(), "removed by the second layer"
    assert (image.root / "etc/b").read_text() == "changed"
    assert list((image.root / "opt/x").iterdir()) == []
    assert (image.entrypoint, image.command) == (("/bin/serve",), ("--fast",))
    assert image.environment == {"MODEL": "m", "EMPTY": ""}
    assert image.work_dir == "/srv"
    assert Images(tmp_path).resolve("team/model:1").root == image.root, "unpacked once"
    assert [path.name for path in (tmp_path / ".unpacked").iterdir()] == [image.root.name]


def test_an_archive_of_a_layout_is_the_same_image(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout")
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(tmp_path / "layout", arcname=".")
    images = Images(tmp_path)
    assert images.resolve("packed").digest == images.resolve("layout").digest


def test_a_tar_is_a_root_and_a_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "plain.tar").write_bytes(tar_of(etc__name="tar"))
    (tmp_path / "folder/etc").mkdir(parents=True)
    (tmp_path / "folder/etc/name").write_text("folder")
    images = Images(tmp_path)
    for name in ("plain", "folder"):
        assert (images.resolve(name).root / "etc/name").read_text() in ("tar", "folder")
    assert images.resolve("plain").digest != images.resolve("folder").digest
    assert images.resolve("local/anything").is_host
    assert images.resolve("").is_host


@pytest.mark.parametrize("name", ["nowhere", "../outside", "a/../../b"])
def test_what_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match=r"spec\.image"):
        Images(tmp_path).check(name)


def test_a_blob_that_was_changed_is_refused(tmp_path: Path) -> None:
    layout = tmp_path / "image"
    make_layout(layout)
    biggest = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1] + b"!")
    with pytest.raises(BadRequest, match="does not have the content"):
        Images(tmp_path).resolve("image")


def test_a_tar_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/bad.tar").write_bytes(tar_of(**{"..__..__stolen": "x"}))
    with pytest.raises(BadRequest, match="outside"):
        Images(tmp_path / "images").resolve("bad")
    assert not (tmp_path / "stolen").exists()
    assert list((tmp_path / "images/.unpacked").iterdir()) == []
