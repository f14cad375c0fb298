"""Alembic's entry: runs the migrations on the connection that `worker.ledger.migrate` hands it.

The migrations name no schema. In their transaction the path leads to ours alone.
"""

from alembic import context
from sqlalchemy import text

from worker.ledger.namespace import SCHEMA
from worker.ledger.schema import metadata

schema = context.config.attributes.get("schema", SCHEMA)
connection = context.config.attributes["connection"]
connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=schema,
    transaction_per_migration=False,
)
context.run_migrations()
