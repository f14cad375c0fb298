"""What starts before `worker migrate` has run waits for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.acceptance.test_health import HEALTH, Probed
from tests.ledger.test_migrate import as_setting
from tests.ledger.test_schema import emptied
from tests.processes import Processes
from tests.servers import Databases
from worker.client import Client
from worker.jobs.states import State
from worker.ledger.migrate import migrate
from worker.settings import Settings

_WAITS = ["The schema is waited for; run `worker migrate`."]
_MISSING = "The database has no celery-ledger tables in its schema 'ledger'"
_SENTENCE = f"Error: {_MISSING}; run `worker migrate`.\n"
_OUR_OWN = [sys.executable, "-m", "worker", "run", "-c", "2"]
_SHOP = ["-m", "celery", "-A", "tests.acceptance.shop"]
_CELERYS = [sys.executable, *_SHOP, "worker", "-c", "2", "-l", "info"]
_KEEPER = [sys.executable, "-m", "worker", "keeper"]


@pytest.fixture
def environment(environment: dict[str, str], databases: Databases) -> Iterator[dict[str, str]]:
    """A subprocess's environment, with a database in which there is nothing."""
    yield {**environment, **HEALTH, "DATABASE_URL": emptied(databases)}


def test_workers_and_a_keeper_wait_for_the_tables(
    processes: Processes, environment: dict[str, str]
) -> None:
    # Given workers and a keeper on an empty database
    started = [processes(argv) for argv in (_OUR_OWN, _CELERYS, _KEEPER)]

    # Then they live, and say what they wait for
    probed = [Probed(process) for process in started]
    for process, probe in zip(started, probed, strict=True):
        process.wait_for_line("Waiting up to 60 s for the schema: ", 60)
        assert probe.ask("/readyz") == _WAITS
        assert probe.ask("/livez") == []

    # When it is migrated, they are ready, and work
    migrate(as_setting(environment["DATABASE_URL"]))
    for probe in probed:
        probe.becomes_ready()
    settings = Settings.load(
        database_url=environment["DATABASE_URL"], redis_url=environment["REDIS_URL"]
    )
    with Client(settings) as client:
        assert client.wait(client.enqueue("probe.echo", [1]).id, 30).state is State.SUCCEEDED
    assert [process.terminate() for process in started] == [0, 0, 0]
    assert [process.output.count("for the schema") for process in started] == [1, 1, 1]


@pytest.mark.parametrize("argv", [_OUR_OWN, _CELERYS, _KEEPER], ids=["worker", "celery", "keeper"])
@pytest.mark.parametrize("seconds", ["0", "1"])
def test_after_the_wait_they_end_with_one_sentence(
    processes: Processes, argv: list[str], seconds: str
) -> None:
    process = processes(argv, {"WORKER_SCHEMA_WAIT_SECONDS": seconds})
    assert process.wait(60) == 2
    assert process.output.count(_SENTENCE) == 1
    assert "Traceback" not in process.output


@pytest.mark.parametrize("argv", [_OUR_OWN, _KEEPER], ids=["worker", "keeper"])
def test_who_waits_for_the_tables_can_be_ended(processes: Processes, argv: list[str]) -> None:
    process = processes(argv)
    process.wait_for_line("Waiting up to 60 s for the schema: ", 60)
    assert process.terminate() == 0
