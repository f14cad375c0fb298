"""`worker migrate`: waits for Postgres, and leaves a newer schema as it is."""

from __future__ import annotations

import sys

import psycopg2

from tests.cli.said import Command
from tests.ledger.test_schema import emptied
from tests.processes import Processes
from tests.proxy import proxied
from tests.servers import Databases
from worker.ledger.migrate import head


def test_it_says_where_the_schema_is(here: Command) -> None:
    assert here("migrate").out == f"Schema at {head()}.\n"
    assert here("migrate", "--json").json == {"revision": head()}


def test_a_newer_schema_that_runs_this_version_is_left_alone(
    here: Command, database_url: str
) -> None:
    _be_at(database_url, "9999", f"9999 runs code from {head()}")

    said = here("migrate")

    assert (said.code, said.err) == (0, "")
    assert said.out == (
        f"Schema at 9999, which is newer than this version's {head()} and runs it;"
        " nothing was changed.\n"
    )
    assert here("migrate", "--json").json == {"revision": "9999"}
    assert f"The schema is at 9999, which this version, at {head()}, runs on." in here("check").out


def test_a_newer_schema_that_does_not_is_refused(here: Command, database_url: str) -> None:
    _be_at(database_url, "9999", "9999 runs code from 9998")

    said = here("migrate", "--wait=60")

    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"Error: The database schema is at 9999, which this code (at {head()}) does not run on;"
        " deploy the version that made it.\n"
    )


def test_postgres_is_waited_for_so_long(here: Command) -> None:
    said = here("migrate", "--wait=1.5", DATABASE_URL="postgresql://u:sesame@127.0.0.1:1/x")

    assert (said.code, said.out) == (3, "")
    first, last = said.err.splitlines()
    assert first.startswith("Postgres is not available: ")
    assert first.endswith("; waiting, 0 s of 1.5 s.")
    assert last.startswith("Error: Postgres is not available: ")


def test_postgres_that_comes_is_migrated(processes: Processes, databases: Databases) -> None:
    # Given an empty database that nobody can reach yet
    address = emptied(databases)
    with proxied(address) as line:
        line.refuse()
        process = processes(
            [sys.executable, "-m", "worker", "migrate", "--wait", "60"], {"DATABASE_URL": line.url}
        )
        process.wait_for_line("waiting, 0 s of 60 s.")

        # When it can be reached
        line.heal()

        # Then it is migrated
        assert process.wait() == 0
        assert process.output.endswith(f"Schema at {head()}.\n")


def _be_at(address: str, revision: str, comment: str) -> None:
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ledger.alembic_version SET version_num = %s", (revision,))
        cursor.execute("COMMENT ON TABLE ledger.alembic_version IS %s", (comment,))
    connection.close()
