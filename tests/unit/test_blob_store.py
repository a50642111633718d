"""Snapshots in a real S3 server (moto's, on the loopback) and in a folder: up, down, torn, foreign.

Must never reach beyond the loopback.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore

from inferx._ext import SnapshotStore, SoftDevice
from inferx.agent.blob import BlobStore, open_blob_store
from inferx.domain.nodeconfig import BlobConfig
from inferx.errors import ConfigError, NotFound, StartFailed, Unavailable

TENANT = "acme"
WEIGHTS = bytes(range(256)) * (20 << 12)  # 20 MiB: three chunks, several pieces of a download


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_config(endpoint: str, bucket: str = "snapshots") -> BlobConfig:
    keys = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
    options = {"bucket": bucket, "endpoint": endpoint, "prefix": "node", **keys}
    return BlobConfig(enable=True, type="s3", options=options)


@pytest.fixture(params=["s3", "nfs"])
def blobs(request: pytest.FixtureRequest, s3: str, tmp_path: Path) -> BlobStore:
    if request.param == "nfs":
        config = BlobConfig(enable=True, type="nfs", options={"path": str(tmp_path / "shared")})
    else:
        import boto3

        client = boto3.client(
            "s3", endpoint_url=s3, aws_access_key_id="test", aws_secret_access_key="test",
            region_name="us-east-1",
        )  # fmt: skip
        bucket = f"b-{os.urandom(4).hex()}"
        client.create_bucket(Bucket=bucket)
        config = s3_config(s3, bucket)
    store = open_blob_store(config)
    assert store is not None
    return store


@pytest.fixture
def device() -> SoftDevice:
    return SoftDevice(128)


def saved(tmp_path: Path, device: SoftDevice, id: str = "one") -> SnapshotStore:
    """A store with one snapshot: GPU memory and a file."""
    store = SnapshotStore(tmp_path / "here")
    handle = device.allocate(20)
    descriptor = device.export(handle)
    os.pwrite(descriptor, WEIGHTS, 0)
    os.close(descriptor)
    image = tmp_path / "core.img"
    image.write_bytes(b"process image")
    identity = json.dumps({"tenant": TENANT, "driver": "580"})
    files = {"criu/core.img": image}
    store.save(id, device, {"weights": handle}, identity=identity, files=files)
    device.free(handle)
    return store


def inner(blobs: BlobStore) -> ObjectStore:
    return blobs._store


async def test_a_snapshot_travels_to_another_node(
    blobs: BlobStore, tmp_path: Path, device: SoftDevice
) -> None:
    here = saved(tmp_path, device)
    await blobs.upload(here, "one")
    await blobs.upload(here, "one")
    assert await blobs.ids(TENANT) == ["one"]
    assert await blobs.ids("other") == []
    there = SnapshotStore(tmp_path / "there")
    await blobs.download(there, TENANT, "one", host={"tenant": TENANT, "driver": "580"})
    there.verify("one")
    assert (there.path("one") / "criu" / "core.img").read_bytes() == b"process image"
    handles, _ = there.restore("one", device)
    descriptor = device.export(handles["weights"])
    assert os.pread(descriptor, len(WEIGHTS), 0) == WEIGHTS
    os.close(descriptor)
    assert (there.path("one") / "data-000.seg").stat().st_mode & 0o777 == 0o600
    await blobs.remove(TENANT, "one")
    await blobs.remove(TENANT, "one")
    assert await blobs.ids(TENANT) == []
    assert [page async for page in obstore.list(inner(blobs))] == []
    with pytest.raises(NotFound):
        await blobs.download(SnapshotStore(tmp_path / "third"), TENANT, "one")


async def test_what_is_not_whole_or_not_for_here_is_refused_and_nothing_kept(
    blobs: BlobStore, tmp_path: Path, device: SoftDevice
) -> None:
    await blobs.upload(saved(tmp_path, device), "one")
    there = SnapshotStore(tmp_path / "there")
    folder = f"{TENANT}/snap-one"
    segment = f"{folder}/data-000.seg"
    sound = bytes(obstore.get(inner(blobs), segment).bytes())

    async def refused(reason: str, **arguments: object) -> None:
        with pytest.raises(StartFailed, match=reason):
            await blobs.download(there, TENANT, "one", **arguments)  # type: ignore[arg-type]
        assert there.ids() == []
        assert [path.name for path in (tmp_path / "there").iterdir()] == []

    await refused("driver", host={"driver": "595"})
    flipped = bytearray(sound)
    flipped[9 << 20] ^= 1
    obstore.put(inner(blobs), segment, bytes(flipped))
    await refused("crc32c of the chunk at 8388608")
    obstore.put(inner(blobs), segment, sound[: 9 << 20])
    await refused("9437184 of")
    obstore.put(inner(blobs), segment, sound + b"\0")
    await refused("longer than")
    obstore.delete(inner(blobs), segment)
    await refused("torn")
    obstore.put(inner(blobs), segment, sound)
    obstore.put(inner(blobs), f"{folder}/criu/core.img", b"process ImagE")
    await refused("xxh3-128")
    obstore.put(inner(blobs), f"{folder}/criu/core.img", b"process image")
    manifest = bytes(obstore.get(inner(blobs), f"{folder}/manifest.json").bytes())
    obstore.put(inner(blobs), f"{folder}/manifest.json", manifest.replace(b"acme", b"evil"))
    await refused("blake3")
    obstore.put(inner(blobs), f"{folder}/manifest.json", manifest)
    # Another tenant's snapshot, copied under a wrong name.
    for name in ("COMMIT", "manifest.json", "chunks.tbl", "data-000.seg", "criu/core.img"):
        copied = bytes(obstore.get(inner(blobs), f"{folder}/{name}").bytes())
        obstore.put(inner(blobs), f"evil/snap-one/{name}", copied)
    with pytest.raises(StartFailed, match="another one"):
        await blobs.download(there, "evil", "one")
    await blobs.download(there, TENANT, "one")
    assert there.ids() == ["one"]


async def test_an_upload_that_stops_half_way_shows_nothing(
    blobs: BlobStore, tmp_path: Path, device: SoftDevice
) -> None:
    here = saved(tmp_path, device)
    await blobs.upload(here, "one")
    obstore.delete(inner(blobs), f"{TENANT}/snap-one/COMMIT")
    assert await blobs.ids(TENANT) == []
    with pytest.raises(NotFound, match="COMMIT"):
        await blobs.download(SnapshotStore(tmp_path / "there"), TENANT, "one")
    await blobs.upload(here, "one")
    assert await blobs.ids(TENANT) == ["one"]


async def test_a_store_that_cannot_be_had_is_unavailable(
    s3: str, tmp_path: Path, device: SoftDevice
) -> None:
    blobs = open_blob_store(s3_config(s3, "no-such-bucket"))
    assert blobs is not None
    here = saved(tmp_path, device)
    with pytest.raises((Unavailable, NotFound)):
        await blobs.upload(here, "one")


def test_a_wrong_configuration_says_what_is_wrong(tmp_path: Path) -> None:
    assert open_blob_store(BlobConfig()) is None
    wrong = [
        (BlobConfig(enable=True), "blobStoreType"),
        (BlobConfig(enable=True, type="s3"), "bucket"),
        (BlobConfig(enable=True, type="nfs"), "path"),
        (BlobConfig(enable=True, type="s3", options={"bucket": "b", "colour": "red"}), "colour"),
    ]
    for config, named in wrong:
        with pytest.raises(ConfigError, match=named):
            open_blob_store(config)
