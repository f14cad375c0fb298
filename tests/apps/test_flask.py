"""A Flask app with a status page behaves durable as it does on stock Celery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps.lanes import HERE, Lane, lanes, until


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lane]]:
    """The app's two lanes, each with a worker and a web server."""
    with lanes(tmp_path_factory.mktemp("flask")) as both:
        started = []
        for lane in both:
            started.append((lane.worker("flask_worker", "-P", "threads", "-c", "4"), "ready."))
            started.append((lane.flask("flask_shop:create_app"), "Running on"))
        for process, line in started:
            process.wait_for_line(line)
        yield {lane.name: lane for lane in both}


LANES = pytest.mark.parametrize("name", ["stock", "durable"])


def _pages(lane: Lane, task: str, **arguments: Any) -> list[dict[str, Any]]:
    """Each new answer of the status page, until the job has ended."""
    status = lane.post(f"/start/{task}", **arguments)["status"]
    seen: list[dict[str, Any]] = []

    def poll() -> bool:
        page = lane.get(status)
        if not seen or seen[-1] != page:
            seen.append(page)
        return page["state"] in ("SUCCESS", "FAILURE")

    until(poll, f"the end of {task}")
    return seen


@LANES
def test_the_status_page_shows_progress_and_then_the_result(
    name: str, flask: dict[str, Lane]
) -> None:
    pages = _pages(flask[name], "long", steps=3, pause=0.3)

    shown = [page["current"] for page in pages if page["state"] == "PROGRESS"]
    assert shown == sorted(shown)
    assert {1, 2} <= set(shown)
    assert pages[-1] == {
        "state": "SUCCESS", "current": 3, "total": 3, "status": "Task completed!", "result": 42,
    }  # fmt: skip


@LANES
def test_the_status_page_bears_a_task_that_says_nothing(name: str, flask: dict[str, Lane]) -> None:
    pages = _pages(flask[name], "quiet", pause=0.5)

    assert [page["state"] for page in pages] == ["PENDING", "SUCCESS"]


@LANES
def test_the_status_page_shows_why_a_task_failed(name: str, flask: dict[str, Lane]) -> None:
    pages = _pages(flask[name], "broken")

    assert pages[-1] == {"state": "FAILURE", "current": 1, "total": 1, "status": "'it broke'"}


def test_what_the_durable_app_ran_stands_in_the_ledger(flask: dict[str, Lane]) -> None:
    lane = flask["durable"]
    job = lane.post("/start/quiet", pause=0.0)["id"]

    until(
        lambda: lane.rows(f"SELECT FROM ledger.jobs WHERE id = '{job}' AND state = 'succeeded'"),
        "the job's row",
    )


def test_the_fixtures_of_celery_contrib_pytest_take_a_durable_app(flask: dict[str, Lane]) -> None:
    lane = flask["durable"]
    suite = str(HERE / "suite_of_fixtures.py")
    plain = ("-c", os.devnull, "--rootdir", str(HERE), "--noconftest", "-p", "no:cacheprovider")
    tests = lane.python("-m", "pytest", "-q", "-p", "celery.contrib.pytest", *plain, suite)

    assert tests.wait(60) == 0, tests.output
    ended = lane.rows("SELECT state, count(*) FROM ledger.jobs WHERE queue = 'suite' GROUP BY 1")
    assert dict(ended) == {"succeeded": 3, "failed": 1}
