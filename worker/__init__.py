"""celery-ledger: Celery jobs that cannot be lost: Postgres is the truth, Redis a doorbell."""
