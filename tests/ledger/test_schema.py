"""What the migrations make is what the schema says, to the last constraint."""

from __future__ import annotations

import psycopg2
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.servers import Databases
from worker.jobs.states import State
from worker.ledger import schema
from worker.ledger.claim import claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.migrate import _config
from worker.ledger.namespace import SCHEMA, make_room
from worker.settings import Settings

_COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_schema = 'ledger' ORDER BY 1, 2
"""
_INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'ledger' ORDER BY 1, 2"
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'ledger'::regnamespace ORDER BY 1, 2
"""
_OPTIONS = """
    SELECT relname, relkind, reloptions FROM pg_class
    WHERE relnamespace = 'ledger'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1
"""


def ledger_at(address: str) -> Ledger:
    settings = Settings.load(database_url=address, redis_url="redis://127.0.0.1")
    return Ledger(settings.database_url.get_secret_value())


def shape(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    return {
        query: [tuple(row) for row in ledger.execute(query) if "alembic_version" not in row[0]]
        for query in (_COLUMNS, _INDEXES, _CONSTRAINTS, _OPTIONS)
    }


def emptied(databases: Databases) -> str:
    address = databases.new()
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA ledger CASCADE")
    connection.close()
    return address


def test_alembic_finds_nothing_to_migrate(database_url: str) -> None:
    ledger = ledger_at(database_url)
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table_schema": SCHEMA,
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
            },
        )
        assert compare_metadata(context, schema.metadata) == []
    ledger.close()


def test_the_migrations_make_what_the_schema_says(databases: Databases) -> None:
    # Given one database made by the migrations and one made from the schema
    migrated, declared = ledger_at(databases.new()), ledger_at(emptied(databases))
    declared.execute(f"CREATE SCHEMA {SCHEMA}")
    schema.metadata.create_all(declared.engine)

    # Then columns, indexes, checks, keys and storage options are the same
    expected, found = shape(declared), shape(migrated)
    for query in expected:
        assert found[query] == expected[query]
    migrated.close()
    declared.close()


def test_who_is_a_suspect_stays_one_when_suspicion_gets_degrees(databases: Databases) -> None:
    # Given a database of the first version, with a suspect and another job
    ledger = ledger_at(emptied(databases))
    upgrade(ledger, "0001")
    ledger.execute("""
        INSERT INTO ledger.jobs (id, task, queue, list, priority, state, suspect, dispatch_seq,
                          fingerprint, envelope, body)
        SELECT id, 't', 'celery', 'celery', 0, 'queued', suspect, 1, '', '{}', '[]'
        FROM (VALUES ('fresh', false), ('suspect', true)) AS v (id, suspect)
    """)
    ledger.execute("""
        INSERT INTO ledger.workers (lease, name, queues, expires_at)
        VALUES ('l', 'w', '{celery}', clock_timestamp() + interval '600 s')
    """)

    # When it is migrated
    upgrade(ledger, "head")

    # Then the suspect is one still, and the lease of a worker that runs on is valid
    (found,) = claim_suspects(ledger, "l", ["celery"], 5, idle=True)
    assert (found.fence.id, found.suspicion) == ("suspect", 1)
    assert [one.fence.id for one in claim(ledger, "l", ["fresh", "suspect"])] == [
        "fresh",
        "suspect",
    ]
    assert ledger.execute("SELECT pod, slots FROM ledger.workers") == [(None, 1)]
    ledger.close()


def upgrade(ledger: Ledger, revision: str) -> None:
    with ledger.transaction() as connection:
        make_room(connection, SCHEMA)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_the_ledger_knows_exactly_the_states(database_url: str) -> None:
    ledger = ledger_at(database_url)
    ((check,),) = ledger.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'jobs_state_known'"
    )
    ledger.close()

    assert {state for state in State if f"'{state}'" in check} == set(State)
    assert check.count("'::text") == len(State)
