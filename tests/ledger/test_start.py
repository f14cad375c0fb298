"""What a start waits for, and for how long."""

from __future__ import annotations

import logging

import pytest

from tests.ledger.test_migrate import as_setting, set_revision
from tests.ledger.test_schema import emptied, ledger_at, upgrade
from tests.servers import Databases
from worker.errors import LedgerUnavailable, SchemaMissing, SchemaNewer
from worker.ledger.migrate import check_schema, migrate
from worker.ledger.start import Start

_SCHEMA = "The schema is waited for; run `worker migrate`."


def test_a_schema_that_is_missing_or_too_old_is_waited_for(
    databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an empty database
    address = emptied(databases)
    ledger = ledger_at(address)
    start = Start(600)

    # Then the start waits, and says so once
    assert not any(start.goes(lambda: check_schema(ledger)) for _ in range(3))
    assert start.waits_for == _SCHEMA
    upgrade(ledger, "0001")
    assert not start.goes(lambda: check_schema(ledger))
    assert [record.message for record in caplog.records] == [
        "Waiting up to 600 s for the schema:"
        " The database has no celery-ledger tables in its schema 'ledger'; run `worker migrate`."
    ]

    # When it is migrated, the start goes
    migrate(as_setting(address))
    assert start.goes(lambda: check_schema(ledger))
    assert not start.waits_for
    ledger.close()


def test_the_wait_has_an_end(databases: Databases) -> None:
    ledger = ledger_at(emptied(databases))
    with pytest.raises(SchemaMissing):
        Start(0).goes(lambda: check_schema(ledger))
    start = Start(0.01)
    with pytest.raises(SchemaMissing):
        while not start.goes(lambda: check_schema(ledger)):
            pass
    ledger.close()


def test_a_schema_that_is_too_new_is_not_waited_for(database_url: str) -> None:
    set_revision(database_url, "9999")
    ledger = ledger_at(database_url)
    with pytest.raises(SchemaNewer):
        Start(600).goes(lambda: check_schema(ledger))
    ledger.close()


def test_postgres_is_waited_for_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    def away() -> None:
        raise LedgerUnavailable("away")

    start = Start(0)
    assert not any(start.goes(away) for _ in range(3))
    assert start.waits_for == "Postgres does not answer."
    assert caplog.record_tuples == [
        ("worker.ledger.start", logging.WARNING, "Waiting for Postgres: away")
    ]
