"""celery-ledger: Celery jobs that cannot be lost. Postgres is the truth; Redis is only the doorbell."""
