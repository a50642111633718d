"""Thin mains, one per service: read the configuration, open, wire, serve.

Must never decide anything about the platform's business.
"""
