"""What happened, for people who answer for it: rows that outlive the process that wrote them.

Must never make a call wait for a database, nor lose a row without counting it.
"""

from inferx.audit.sink import Query, Sink
from inferx.audit.tables import TABLES, Row, Table
from inferx.audit.writer import Audit, open_audit

__all__ = ["TABLES", "Audit", "Query", "Row", "Sink", "Table", "open_audit"]
