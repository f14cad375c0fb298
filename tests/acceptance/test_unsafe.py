"""Postgres comes back with `fsync = off`, which no session can mend: nobody works with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.acceptance.conftest import Service
from tests.processes import Processes
from worker.errors import NotDurable
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings
from worker.stack.postgres import PostgresServer

SENTENCE = (
    "Postgres has fsync = off: a crash of the machine loses or corrupts committed jobs;"
    " set it to on, or, if its storage is safe without, set WORKER_TRUST_POSTGRES_STORAGE=true."
)
SHOP = ["celery", "-A", "tests.acceptance.shop", "worker", "-P", "solo"]
NEW = {
    "worker": ["worker", "run", "-P", "solo"],
    "Celery's worker": SHOP,
    "keeper": ["worker", "keeper"],
    "producer": ["worker", "enqueue", "probe.echo"],
}


@pytest.fixture
def service(
    own_postgres: PostgresServer, redis_url: str, processes: Processes, tmp_path: Path
) -> Iterator[Service]:
    """A service on a Postgres of its own, which may be restarted."""
    settings = Settings.load(database_url=own_postgres.url, redis_url=redis_url)
    processes._environment = {**processes._environment, "DATABASE_URL": own_postgres.url}
    made = Service(processes, settings, tmp_path)
    yield made
    made.client.close()


def test_who_is_new_is_refused_and_who_works_waits_and_loses_nothing(
    service: Service, own_postgres: PostgresServer
) -> None:
    # Given a job under way
    keeper = service.keeper()
    worker = service.worker("threads", 2)
    job_id = service.enqueue("test.hold", service.log, service.gate)
    service.running([job_id])

    # When Postgres comes back unsafe, and the job ends
    safe = own_postgres.options
    own_postgres.options = {**safe, "fsync": "off"}
    own_postgres.restart()
    service.open_gate()
    worker.wait_for_line("results wait for Postgres: Postgres came back unsafe")

    # Then whoever is new is refused in one sentence, and nothing is accepted
    started = [service.processes([sys.executable, "-m", *argv]) for argv in NEW.values()]
    app = durable(Celery("producer", set_as_current=False), service.settings)
    for use in (lambda: app.send_task("test.echo", task_id="refused"),
                lambda: app.AsyncResult(job_id).state):  # fmt: skip
        with pytest.raises(NotDurable) as told:
            use()
        assert str(told.value) == SENTENCE
    app.close()
    for name, process in zip(NEW, started, strict=True):
        assert process.wait(60) == 2, name
        assert process.output.count(SENTENCE) == 1, name
        assert "Traceback" not in process.output, name
    assert worker.exit_code is keeper.exit_code is None

    # And when it is safe again, the result of the one attempt is written
    own_postgres.options = safe
    own_postgres.restart()
    ended = service.ended(job_id)
    assert (ended.state, ended.attempt, ended.lost) == (State.SUCCEEDED, 1, 0)
    assert not service.client.summary(["refused"])
