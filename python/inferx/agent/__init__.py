"""The node agent: it runs pods on one node, owns their VRAM, and reports node and pods.

Must never decide what should run where; the scheduler does.
"""
