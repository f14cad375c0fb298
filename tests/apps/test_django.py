"""A Django site with a namespace, `delay_on_commit`, beat's database scheduler, and channels."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import psycopg2
import pytest
from websockets.sync.client import connect

from tests.apps.lanes import HERE, Lane, lanes, until
from worker.client import Client
from worker.settings import Settings

LANES = pytest.mark.parametrize("name", ["stock", "durable"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lane]]:
    """The site's two lanes: migrated, with a worker of threads, a beat and a web server."""
    with lanes(tmp_path_factory.mktemp("django"), HERE / "django_site") as both:
        migrations = [
            lane.python(str(HERE / "django_site" / "manage.py"), "migrate", "-v", "0")
            for lane in both
        ]
        assert [migration.wait(60) for migration in migrations] == [0, 0]
        started = []
        for lane in both:
            started.append((lane.worker("mysite", "-P", "threads", "-c", "4"), "ready."))
            started.append((lane.web("mysite.asgi:application"), "running on"))
            beat = lane.python("-m", "celery", "-A", "mysite", "beat", "-l", "info")
            started.append((beat, "beat: Starting"))
        for process, line in started:
            process.wait_for_line(line, 60)
        yield {lane.name: lane for lane in both}


@LANES
def test_a_job_is_sent_after_the_commit(name: str, site: dict[str, Lane]) -> None:
    lane = site[name]

    lane.post("/order", item="a chair")

    until(lambda: "a chair" in lane.get("/ticks")["packed"], "the chair to be packed")


@LANES
def test_nothing_is_sent_for_what_is_rolled_back(name: str, site: dict[str, Lane]) -> None:
    lane = site[name]
    before = _jobs(lane)

    assert lane.post("/order-undone") == {"orders": 0}

    lane.post("/order", item=f"after {before}")
    until(lambda: f"after {before}" in lane.get("/ticks")["packed"], "the order after it")
    assert _jobs(lane) == before + 1


@LANES
def test_the_web_socket_hears_of_the_end_and_reads_it(name: str, site: dict[str, Lane]) -> None:
    for lose, what, state in ((False, "success", "SUCCESS"), (True, "failure", "FAILURE")):
        job = str(uuid.uuid4())
        lane = site[name]
        with connect(f"{lane.url.replace('http', 'ws')}/ws/{job}") as socket:
            assert json.loads(socket.recv(timeout=20)) == {"listening": True}
            lane.post("/order", **{"item": "a lamp", "job": job, "lose": lose, "in": 1})
            told = json.loads(socket.recv(timeout=20))

        assert told == {"what": what, "told": state, "here": state}


@LANES
def test_a_failure_is_read_with_its_text(name: str, site: dict[str, Lane]) -> None:
    lane, job = site[name], str(uuid.uuid4())
    order = lane.post("/order", **{"item": "a vase", "job": job, "lose": True, "in": 1})["id"]

    until(lambda: lane.get(f"/result/{job}")["state"] == "FAILURE", "the failure")

    assert lane.get(f"/result/{job}")["result"] == f"order {order} is lost"


@LANES
def test_djangos_own_result_rows_are_written_too(name: str, site: dict[str, Lane]) -> None:
    lane, job = site[name], str(uuid.uuid4())

    lane.post("/order", **{"item": "a desk", "job": job, "in": 1})

    query = "SELECT result, task_name FROM django_celery_results_taskresult"
    ended = f"{query} WHERE task_id = '{job}' AND status = 'SUCCESS'"
    ((result, task),) = until(lambda: lane.rows(ended), "the row of django-celery-results")
    assert json.loads(result) == {"packed": "a desk", "try": 0}
    assert task == "shop.tasks.pack"


def test_the_row_of_a_job_that_an_operator_cancels_says_so(site: dict[str, Lane]) -> None:
    lane, waits, runs = site["durable"], str(uuid.uuid4()), str(uuid.uuid4())
    lane.post("/order", **{"item": "a sofa", "job": waits, "in": 3600})
    order = lane.post("/order", **{"item": "a bed", "job": runs, "rest": True})["id"]
    until(lambda: _status(lane, runs) == [("STARTED", "shop.tasks.rest")], "the start")

    # When both are cancelled, and the task of the one that runs returns all the same
    with Client(Settings.load(database_url=lane.database_url, redis_url=lane.redis_url)) as client:
        client.cancel(waits)
        client.cancel(runs)
    with psycopg2.connect(lane.database_url) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE public.jobs SET packed = true WHERE id = %s", (order,))
    connection.close()

    # Then the pages of django-celery-results say so too
    until(lambda: _status(lane, waits) == [("REVOKED", "shop.tasks.pack")], "the one that waits")
    lane.workers[0].wait_for_line(f"of job {runs}, attempt 1, is dropped", 30)
    until(lambda: _status(lane, runs) == [("REVOKED", "shop.tasks.rest")], "the one that runs")


@LANES
def test_beats_database_scheduler_sends_what_is_due(name: str, site: dict[str, Lane]) -> None:
    lane = site[name]

    lane.post("/every-second")

    until(lambda: lane.get("/ticks")["ticks"] >= 2, "two ticks")


def test_the_app_and_the_ledger_have_a_table_jobs_each(site: dict[str, Lane]) -> None:
    lane = site["durable"]

    assert lane.rows("SELECT count(*) FROM public.jobs WHERE packed")[0][0] > 0
    assert lane.rows("SELECT count(*) FROM ledger.jobs WHERE task = 'shop.tasks.pack'")[0][0] > 0


def test_the_worker_says_once_that_the_result_backend_is_the_ledger(site: dict[str, Lane]) -> None:
    output = site["durable"].workers[0].output

    assert output.count("django-db") == 1


def _status(lane: Lane, job: str) -> list[tuple[str, str]]:
    query = "SELECT status, task_name FROM django_celery_results_taskresult"
    return lane.rows(f"{query} WHERE task_id = '{job}'")


def _jobs(lane: Lane) -> int:
    """How many jobs of the task `pack` have ended."""
    return len(lane.get("/ticks")["packed"])
