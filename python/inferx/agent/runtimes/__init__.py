"""The ways to run a pod's worker: one module per runtime behind one protocol.

Must never know of pods' states, leases or VRAM.
"""
