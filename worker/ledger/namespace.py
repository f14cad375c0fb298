"""The namespace: the Postgres schema that holds the tables, and the way of older tables into it.

Every statement names its tables with the schema, as `ledger.jobs`: `search_path` belongs to others.
"""

from __future__ import annotations

import logging
from typing import Final

from sqlalchemy import Connection, text

from worker.errors import ConfigurationError

logger = logging.getLogger(__name__)

#: The schema that every statement names.
SCHEMA: Final = "ledger"
#: The tables that versions before 0004 made wherever `search_path` led.
_TABLES: Final = ("jobs", "attempts", "workers", "leaders", "catalogue", "queues", "groups")
#: Columns of `jobs` by which a ledger is known: other programs have tables of that name too.
_KNOWN_BY: Final = ["dispatch_seq", "fingerprint", "envelope", "body", "list", "rings", "lost"]

_EXISTS: Final = text("SELECT to_regnamespace(quote_ident(:schema)) IS NOT NULL")

# The schemas that hold a ledger, of those that a version before 0004 may have used: what is first
# in the path comes first.
_OLD_PLACES: Final = text("""
    SELECT c.relnamespace::regnamespace::text AS place
    FROM pg_catalog.pg_class c
    JOIN unnest(current_schemas(false) || CAST('public' AS name)) WITH ORDINALITY AS p (name, rank)
      ON c.relnamespace = to_regnamespace(quote_ident(p.name))
    WHERE c.relname = 'jobs' AND c.relkind = 'r' AND p.name <> :schema
      AND (SELECT count(*) FROM pg_catalog.pg_attribute a
           WHERE a.attrelid = c.oid AND NOT a.attisdropped
             AND a.attname = ANY(CAST(:columns AS name[]))) = cardinality(CAST(:columns AS name[]))
      AND EXISTS (SELECT FROM pg_catalog.pg_class s WHERE s.relnamespace = c.relnamespace
                  AND s.relname = 'dispatch_seq' AND s.relkind = 'S')
    GROUP BY 1 ORDER BY min(p.rank)
""")


def make_room(connection: Connection) -> None:
    """Have the schema, with the tables of an older version in it if there are some.

    Raises:
        ConfigurationError: the role may not make it, or the database holds two ledgers.
    """
    exists = connection.execute(_EXISTS, {"schema": SCHEMA}).scalar()
    old = old_place(connection)
    if not exists:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    if old is None:
        return
    if connection.execute(text(f"SELECT to_regclass('{SCHEMA}.jobs') IS NOT NULL")).scalar():
        raise ConfigurationError(
            f"The schemas {SCHEMA} and {old} both hold celery-ledger's tables; those in {old} were"
            " made by a version before 0004: drop them if no job in them matters."
        )
    for table in _TABLES:
        connection.execute(text(f"ALTER TABLE {old}.{table} SET SCHEMA {SCHEMA}"))
    connection.execute(text(f"ALTER SEQUENCE {old}.dispatch_seq SET SCHEMA {SCHEMA}"))
    connection.execute(text(f"ALTER TABLE {old}.alembic_version SET SCHEMA {SCHEMA}"))
    logger.info("The tables were moved from the schema %s to %s", old, SCHEMA)


def old_place(connection: Connection) -> str | None:
    """The schema, quoted, in which a version before 0004 keeps its tables, or `None`."""
    known = {"schema": SCHEMA, "columns": _KNOWN_BY}
    return connection.execute(_OLD_PLACES, known).scalars().first()
