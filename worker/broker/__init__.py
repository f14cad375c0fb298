"""The broker: doorbells in Redis.

May touch: redis, and kombu's transports; no other room may. May not: decide, nor know the ledger.
"""
