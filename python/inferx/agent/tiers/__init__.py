"""Where workers' GPU memory is kept while they have no GPU, and how it moves between tiers.

Must never know how workers are started or parked; the pod asks for its memory by an id.
"""
