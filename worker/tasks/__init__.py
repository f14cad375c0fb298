"""Built-in tasks. May touch: Celery's shared_task and the network. May not: know the ledger."""
