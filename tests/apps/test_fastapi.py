"""A FastAPI project on `current_app`, with topic routes and a web socket fed by `task_postrun`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.apps.lanes import Lane, lanes, until

LANES = pytest.mark.parametrize("name", ["stock", "durable"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Lane]]:
    """The project's two lanes, each with a worker of processes and a web server."""
    with lanes(tmp_path_factory.mktemp("fastapi")) as both:
        started = []
        for lane in both:
            worker = lane.worker("fastapi_project.main.celery_app", "-P", "prefork", "-c", "2")
            started.append((worker, "ready."))
            started.append((lane.web("fastapi_project.main:app"), "running on"))
        for process, line in started:
            process.wait_for_line(line)
        yield {lane.name: lane for lane in both}


def _ended(lane: Lane, task: str, **arguments: Any) -> Any:
    job = lane.post(f"/call/{task}", **arguments)["id"]

    def asked() -> Any:
        info = lane.get(f"/state/{job}")
        return info if info["state"] in ("SUCCESS", "FAILURE") else None

    return until(asked, f"the end of {task}")


@LANES
def test_the_default_queue_is_served(name: str, project: dict[str, Lane]) -> None:
    assert _ended(project[name], "add", x=1, y=2) == {"state": "SUCCESS", "result": 3}


@LANES
def test_a_topic_routes_a_task_by_its_name(name: str, project: dict[str, Lane]) -> None:
    assert _ended(project[name], "resize", width=8) == {"state": "SUCCESS", "result": 4}


@LANES
def test_a_topic_with_a_hash_routes_several_words(name: str, project: dict[str, Lane]) -> None:
    ended = _ended(project[name], "welcome", address="a@example.com")

    assert ended == {
        "state": "SUCCESS",
        "result": {"to": "a@example.com", "key": "mail.send.welcome"},
    }


@LANES
def test_a_failure_is_told_with_its_text(name: str, project: dict[str, Lane]) -> None:
    assert _ended(project[name], "broken") == {"state": "FAILURE", "error": "no picture"}


@LANES
def test_the_web_socket_hears_the_end_and_reads_it(name: str, project: dict[str, Lane]) -> None:
    lane = project[name]
    job = lane.post("/call/add", x=2, y=3, pause=1.0)["id"]

    with connect(f"{lane.url.replace('http', 'ws')}/ws/{job}") as socket:
        assert json.loads(socket.recv(timeout=20)) == {"listening": True}
        told = json.loads(socket.recv(timeout=20))

    ended = {"state": "SUCCESS", "result": 5}
    assert told == {"handler": ended, "here": ended}


def test_after_flushdb_a_topic_still_makes_a_row(project: dict[str, Lane]) -> None:
    lane = project["durable"]
    lane.flush()

    assert _ended(lane, "resize", width=10) == {"state": "SUCCESS", "result": 5}


def test_an_unknown_id_is_pending(project: dict[str, Lane]) -> None:
    states = [lane.get(f"/state/{uuid.uuid4()}") for lane in project.values()]

    assert states == [{"state": "PENDING"}] * 2
