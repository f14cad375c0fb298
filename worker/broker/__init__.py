"""The broker: doorbells in Redis. The only room that imports redis or kombu's transports. May not: decide, nor know the ledger."""
