"""What the migrations make is what the schema says, to the last constraint."""

from __future__ import annotations

import psycopg2
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.servers import Databases
from worker.jobs.states import State
from worker.ledger import schema
from worker.ledger.database import Ledger
from worker.settings import Settings

_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
"""
_INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
_OPTIONS = """
    SELECT relname, relkind, reloptions FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1
"""


def ledger_at(address: str) -> Ledger:
    settings = Settings.load(database_url=address, redis_url="redis://127.0.0.1")
    return Ledger(settings.database_url.get_secret_value())


def shape(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    return {
        query: [tuple(row) for row in ledger.execute(query) if row[0] != "alembic_version"]
        for query in (_COLUMNS, _INDEXES, _CONSTRAINTS, _OPTIONS)
    }


def emptied(databases: Databases) -> str:
    address = databases.new()
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.close()
    return address


def test_alembic_finds_nothing_to_migrate(database_url: str) -> None:
    ledger = ledger_at(database_url)
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, schema.metadata) == []
    ledger.close()


def test_the_migrations_make_what_the_schema_says(databases: Databases) -> None:
    # Given one database made by the migrations and one made from the schema
    migrated, declared = ledger_at(databases.new()), ledger_at(emptied(databases))
    schema.metadata.create_all(declared.engine)

    # Then columns, indexes, checks, keys and storage options are the same
    expected, found = shape(declared), shape(migrated)
    for query in expected:
        assert found[query] == expected[query]
    migrated.close()
    declared.close()


def test_the_ledger_knows_exactly_the_states(database_url: str) -> None:
    ledger = ledger_at(database_url)
    ((check,),) = ledger.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'jobs_state_known'"
    )
    ledger.close()

    assert {state for state in State if f"'{state}'" in check} == set(State)
    assert check.count("'::text") == len(State)
