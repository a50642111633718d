"""The tiers of one node as its configuration says: pinned pool, files, blob store.

Must never pin memory on a node that has no GPU to copy it to.
"""

from __future__ import annotations

from inferx._ext import HostPool, SnapshotStore
from inferx.agent.blob import open_blob_store
from inferx.agent.ledger import Ledger
from inferx.agent.tiers.accountant import Accountant, Cost, Tier
from inferx.agent.tiers.memory import GpuMemory
from inferx.config import NodeConfig

_MIB = 1 << 20
# What decides is how the tiers compare: copies by DMA, by the processor, from a disk, over a wire.
COSTS = {
    Tier.GPU: Cost(0.0, 1e12),
    Tier.PINNED: Cost(0.005, 50e9),
    Tier.PAGEABLE: Cost(0.005, 10e9),
    Tier.FILE: Cost(0.02, 3e9),
    Tier.BLOB: Cost(0.2, 0.5e9),
}
COLD_S = 60.0  # what it takes to load a model from nothing


def node_memory(config: NodeConfig, ledger: Ledger) -> GpuMemory | None:
    """None on a node without simulated GPUs: the memory of real ones is kept by their driver.

    Raises ConfigError for a blob store that is not configured well.
    """
    devices = [ledger.gpus[0].index] if ledger.gpus else []
    gpu = ledger.simulated(devices)[0] if devices else None
    if gpu is None:
        return None
    pool = HostPool(gpu, config.sharemem.pool_mb)
    limits = {Tier.PINNED: pool.capacity_mib * _MIB}
    if config.snapshot_budget_mb:
        limits[Tier.FILE] = config.snapshot_budget_mb * _MIB
    config.snapshot_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = SnapshotStore(config.snapshot_dir / "gpu")
    books = Accountant(limits, COSTS, COLD_S)
    return GpuMemory(pool, store, books, open_blob_store(config.blob))
