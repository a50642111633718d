"""The certificates of scripts/etcd-certs work with etcd and the state service's client."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inferx.domain.nodeconfig import EtcdConfig
from inferx.errors import InferxError
from inferx.store.etcd import EtcdStore
from inferx.store.protocol import Put
from tests.cluster.etcd_server import EtcdServer

from .kustomize import ROOT, find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    script = str(ROOT / "scripts" / "etcd-certs")
    subprocess.run([script, str(tmp_path / "c")], check=True, capture_output=True)
    return tmp_path / "c"


async def test_members_and_clients_prove_who_they_are(folder: Path, tmp_path: Path) -> None:
    members, client = folder / "members", folder / "client"
    # What the manifest passes, with the files in this folder instead of the mounted secret.
    command = find("base", "StatefulSet", "etcd")["spec"]["template"]["spec"]["containers"][0]
    tls = [
        flag.replace("/run/secrets/etcd", str(members))
        for flag in command["command"]
        if flag.startswith(("--client-cert-auth", "--trusted-ca", "--cert-file", "--key-file"))
    ]
    assert len(tls) == 4
    server = EtcdServer(tmp_path, *tls, scheme="https")
    try:
        address = f"https://{server.address}"
        files = {
            "ca": str(client / "ca.crt"),
            "cert": str(client / "tls.crt"),
            "key": str(client / "tls.key"),
        }
        store = await EtcdStore.open([address], EtcdConfig(**files))
        assert await store.commit((), [Put("/a", b"1")]) > 0
        await store.close()
        with pytest.raises(InferxError):
            await EtcdStore.open([address], EtcdConfig(ca=files["ca"]))
    finally:
        server.stop()
