"""`inferx doctor`: looks whether a node or a cluster can do its work, and says what to do if not.

Must never change anything on the machine, except for a test file that it removes again.
"""
