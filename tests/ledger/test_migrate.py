from __future__ import annotations

import psycopg2
import pytest

from tests.ledger import given
from tests.ledger.test_schema import emptied, ledger_at
from tests.servers import Databases
from worker.errors import LedgerUnavailable, SchemaMissing, SchemaNewer
from worker.ledger.migrate import check_schema, head, migrate
from worker.settings import Settings


def as_setting(address: str) -> str:
    settings = Settings.load(database_url=address, redis_url="redis://127.0.0.1")
    return settings.database_url.get_secret_value()


def set_revision(address: str, revision: str) -> None:
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ledger.alembic_version SET version_num = %s", (revision,))
    connection.close()


def test_replicas_that_migrate_at_once_make_one_schema(databases: Databases) -> None:
    # Given an empty database
    address = emptied(databases)

    # When eight replicas migrate it at the same time
    answers = given.all_at_once([lambda: migrate(as_setting(address))] * 8)

    # Then each of them ends well, and the schema is there
    assert answers == [head()] * 8
    ledger = ledger_at(address)
    check_schema(ledger)
    assert ledger.execute("SELECT version_num FROM ledger.alembic_version") == [(head(),)]
    ledger.close()


def test_migrating_again_changes_nothing(database_url: str) -> None:
    assert migrate(as_setting(database_url)) == head()


def test_a_newer_schema_is_left_alone(database_url: str) -> None:
    set_revision(database_url, "9999")

    with pytest.raises(SchemaNewer, match="at 9999, which this code"):
        migrate(as_setting(database_url))

    ledger = ledger_at(database_url)
    with pytest.raises(SchemaNewer, match="deploy the version that made it"):
        check_schema(ledger)
    ledger.close()


def test_a_missing_schema_is_told(databases: Databases) -> None:
    ledger = ledger_at(emptied(databases))
    with pytest.raises(SchemaMissing, match="run `worker migrate`"):
        check_schema(ledger)
    ledger.close()


def test_a_statement_on_a_missing_schema_says_so(databases: Databases) -> None:
    ledger = ledger_at(emptied(databases))
    with pytest.raises(SchemaMissing):
        given.enqueued(ledger)
    ledger.close()


def test_postgres_away_is_no_missing_schema() -> None:
    with pytest.raises(LedgerUnavailable):
        migrate("postgresql+psycopg2://postgres:x@127.0.0.1:1/ledger")
