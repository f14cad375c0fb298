"""Use cases, one per module, a verb each. May touch: ledger, broker. May not: import Celery."""
