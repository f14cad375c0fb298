"""A worker inside another program: that program is not started again for its suspects."""

from __future__ import annotations

import sys

import pytest

from tests.acceptance.conftest import Service
from worker.jobs.states import State

#: Programs that start a worker of their own. Each leaves a line when it is started.
_BEGIN = """
import sys
from tests.acceptance.jobs import note
note(sys.argv[1], "program")
"""
_OPTIONS = '"worker", "-P", "threads", "-c", "2", "-l", "info"'
PROGRAMS = {
    "script": f"from tests.acceptance.shop import app\napp.worker_main([{_OPTIONS}])",
    "undurable": f"""
from tests.acceptance.bare import app
from worker.runtime import durable
durable(app).worker_main([{_OPTIONS}])
""",
}


@pytest.mark.parametrize(
    ("program", "task", "queue", "said"),
    [
        ("script", "tests.acceptance.shop.order", "shop", "starting a process with 2 children"),
        ("undurable", "bare.note", "celery", "before it could begin"),
    ],
)
def test_a_program_that_runs_a_worker_is_started_once(
    service: Service, program: str, task: str, queue: str, said: str
) -> None:
    # Given a suspect, and a program that starts a worker
    service.keeper()
    argv = [sys.executable, "-c", _BEGIN + PROGRAMS[program], service.log]
    suspect = service.enqueue(task, service.log, queue=queue)
    service.client.ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    worker = service.processes(argv, service._variables({"WORKER_TASKS": ""}))

    # When the suspect wants a place, then what happens is said
    worker.wait_for_line(said, 60)

    # And it runs in a process of the app alone, where that can be; else it waits
    if program == "script":
        service.ended(suspect, 60)
        assert service.client.job(suspect).state is State.SUCCEEDED
    else:
        assert service.client.job(suspect).state is State.QUEUED
    assert len(service.ran("program")) == 1
    if program == "undurable":
        assert (
            "tests.acceptance.bare:app is not durable where it is imported alone" in worker.output
        )
