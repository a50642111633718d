"""The gateway: the data plane's tables, the leases of workers, and every route that is no call.

Must never touch the bytes of an inference call; those stay in the data plane.
"""
