"""Celery's side: app, transport wiring, claims, leases, results, drain.

May touch: Celery, ledger, broker. May not: SQL.
"""

# The one name that users import: `from worker.runtime import durable; durable(app)`.
from worker.runtime.install import durable

__all__ = ["durable"]
