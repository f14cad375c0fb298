"""The Redis that Sentinel names is killed while workers are busy, and another takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests import sentinels
from tests.acceptance.conftest import Service
from tests.processes import Processes
from tests.sentinels import Group
from worker.jobs.states import State
from worker.runtime import durable
from worker.settings import Settings


@pytest.fixture
def group() -> Iterator[Group]:
    """Two servers and a Sentinel of the test's own."""
    with sentinels.group() as made:
        yield made


@pytest.fixture
def watched(
    group: Group, database_url: str, processes: Processes, tmp_path: Path
) -> Iterator[Service]:
    """A service that knows the Sentinels alone."""
    settings = Settings.load(database_url=database_url, redis_url=group.url)
    processes._environment = {**processes._environment, "REDIS_URL": group.url}
    made = Service(processes, settings, tmp_path)
    yield made
    made.client.close()


def test_after_the_masters_death_everything_goes_on_with_the_next(
    watched: Service, group: Group
) -> None:
    # Given workers with many jobs, a keeper, and a Celery producer
    watched.keeper()
    workers = [watched.worker("threads", 4), watched.worker("prefork", 2)]
    app = durable(Celery("producer", set_as_current=False), watched.settings)
    ids = [app.send_task("test.note", [watched.log]).id]
    ids += watched.enqueue_many("test.sleep", 300, watched.log, 0.02)
    ids += [watched.enqueue("test.note", watched.log, delay=3)]
    watched.until(lambda: watched.client.counts(ids).get(State.SUCCEEDED, 0) >= 20)

    # When the master dies: enqueues succeed meanwhile
    old = group.master
    old.kill()
    ids += [app.send_task("test.note", [watched.log]).id]
    ids += watched.enqueue_many("test.note", 20, watched.log)
    group.await_other(old)
    ids += [app.send_task("test.note", [watched.log]).id]

    # Then every job ends well, by the workers that were there before
    assert watched.all_ended(ids, 90) == {State.SUCCEEDED: 324}
    assert [worker.exit_code for worker in workers] == [None, None]
    # which hear again what they are told
    watched.until(lambda: len(app.control.ping(timeout=2, limit=2)) == 2, 60)
    app.close()


def test_an_app_keeps_its_own_broker_url_and_what_it_says_of_sentinel(
    watched: Service, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", watched.settings.database_url.get_secret_value())
    app = Celery("own", broker=group.broker_url, set_as_current=False)
    app.conf.broker_transport_options = group.transport_options
    durable(app)

    job_id = app.send_task("test.note", [watched.log]).id
    watched.worker()

    assert watched.ended(job_id).state is State.SUCCEEDED
    # and the worker tells about itself, but not how the Sentinels are spoken to
    (stats,) = app.control.inspect(timeout=10, limit=1).stats().values()
    assert stats["broker"]["transport_options"]["master_name"] == sentinels.NAME
    assert group.sentinel.password not in str(stats)
    app.close()
