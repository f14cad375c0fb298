"""Real processes on a ledger in a schema of another name, by a role of their own, whose password is
changed while they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.ledger.test_neighbours import THEIRS, relations, sql
from tests.ledger.test_schema import emptied
from tests.processes import Processes
from tests.servers import Databases
from worker.client import Client
from worker.jobs.states import State
from worker.settings import Settings

_WORKER = [sys.executable, "-m", "worker", "run", "-c", "2"]
_KEEPER = [sys.executable, "-m", "worker", "keeper"]
_MIGRATE = [sys.executable, "-m", "worker", "migrate"]


@pytest.fixture
def address(databases: Databases) -> str:
    """An app's database, in which there are tables under our names."""
    address = emptied(databases)
    sql(address, THEIRS)
    return address


@pytest.fixture
def environment(environment: dict[str, str], address: str) -> Iterator[dict[str, str]]:
    """A subprocess's environment: a role that may make schemas, two hosts, and an app's driver."""
    database = address.rpartition("/")[2]
    port = address.rpartition(":")[2].partition("/")[0]
    sql(address, "DROP ROLE IF EXISTS neighbour; CREATE ROLE neighbour LOGIN PASSWORD 'old'")
    sql(address, f'GRANT CREATE ON DATABASE "{database}" TO neighbour')
    places = f"127.0.0.1:1,127.0.0.1:{port}"
    url = f"postgresql+asyncpg://neighbour:old@{places}/{database}?pool_size=5"
    yield {
        **environment,
        "DATABASE_URL": url,
        "WORKER_SCHEMA": "shop_ledger",
        "WORKER_LEASE_SECONDS": "3",
        "WORKER_CONCURENCY": "4",
    }
    sql(address, "DROP OWNED BY neighbour CASCADE; DROP ROLE neighbour")


def test_a_ledger_beside_an_app_outlives_a_change_of_its_password(
    processes: Processes, environment: dict[str, str], address: str
) -> None:
    before = relations(address, "public")
    assert processes(_MIGRATE).wait(60) == 0
    worker, keeper = processes(_WORKER), processes(_KEEPER)
    settings = Settings.load(
        database_url=environment["DATABASE_URL"],
        redis_url=environment["REDIS_URL"],
        ledger_schema="shop_ledger",
    )
    with Client(settings) as client:
        # Given a worker and a keeper that work
        assert client.wait(client.enqueue("probe.echo", [1]).id, 60).state is State.SUCCEEDED
        assert relations(address, "ledger") == set()
        assert relations(address, "public") == before
        assert "WORKER_CONCURENCY is no setting, and is ignored; did you mean" in worker.output

        # When the password is changed before they know of it
        sql(address, "ALTER ROLE neighbour PASSWORD 'new'")
        sql(address, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                     " WHERE usename = 'neighbour'")  # fmt: skip
        told = worker.wait_for_line("Postgres refuses what DATABASE_URL gives: ", 30)
        assert "password authentication failed" in told

        # And a command that is run now is the operator's to mend
        refused = processes([sys.executable, "-m", "worker", "job", "list"])
        assert refused.wait(60) == 2

        # Then they go on when it is right again
        sql(address, "ALTER ROLE neighbour PASSWORD 'old'")
        assert client.wait(client.enqueue("probe.echo", [2], delay=0.5).id, 60).state is (
            State.SUCCEEDED
        )
    assert [worker.terminate(), keeper.terminate()] == [0, 0]
    assert "Traceback" not in worker.output + keeper.output
