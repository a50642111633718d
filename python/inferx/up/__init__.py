"""The whole platform on one machine: starts its services, keeps them running, stops them.

Must never hold state that is lost with it; what matters is in the services' own store.
"""
