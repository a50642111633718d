"""Stores of objects and the caches that follow them.

Must never decide what may be written; the state service does.
"""

from __future__ import annotations

from inferx.config import NodeConfig
from inferx.store.protocol import Store


async def open_store(config: NodeConfig) -> Store:
    """The store that `config` asks for: etcd when it has addresses, else the embedded file."""
    if config.etcd_addrs:
        from inferx.store.etcd import EtcdStore

        return await EtcdStore.open(config.etcd_addrs, config.etcd)
    from inferx.store.embedded import EmbeddedStore

    return await EmbeddedStore.open(config.data_dir / "state.db")
