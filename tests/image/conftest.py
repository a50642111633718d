"""One engine and the images for all tests here; `make image-test` runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import ROOT, Engine, bootstrap

BASE, ETCD, POSTGRES = "debian-base:test", "etcd:test", "postgres:test"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    running = Engine()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Builds everything by scripts/image and the two stores from Debian's packages; the version."""
    engine.import_tree(bootstrap("base"), BASE)
    command = [str(ROOT / "scripts" / "image"), "service", "demo"]
    environment = {**engine.environment, "BASE_IMAGE": BASE, "PY": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = tmp_path_factory.mktemp("etcd")
    shutil.copy(Path(shutil.which("etcd") or "etcd is not installed"), files / "etcd")
    engine.build(
        ETCD,
        f"FROM {BASE}\nCOPY etcd /usr/local/bin/etcd\n"
        "RUN install -d -o 10002 -g 10002 -m 700 /var/lib/etcd\nUSER 10002:10002\n",
        files,
    )
    engine.import_tree(bootstrap("postgres", "postgresql-15"), "debian-postgres:test")
    files = tmp_path_factory.mktemp("postgres")
    shutil.copy(Path(__file__).parent / "postgres-entrypoint", files)
    engine.build(
        POSTGRES,
        "FROM debian-postgres:test\nCOPY postgres-entrypoint /usr/local/bin/\n"
        "RUN install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data && "
        "chmod 3777 /var/run/postgresql\n"
        'USER postgres\nENTRYPOINT ["postgres-entrypoint"]\n',
        files,
    )
    version = engine.docker("images", "inferx/inferx", "--format", "{{.Tag}}")
    return version.splitlines()[0]
