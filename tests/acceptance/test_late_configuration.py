"""A worker started from an app that is configured after `durable()` claims from the ledger."""

from __future__ import annotations

import json
import sys

import pytest

from tests.acceptance.conftest import Service
from worker.jobs.states import State

CELERY = [sys.executable, "-m", "celery"]
WAYS = {
    "prefork": ([], ["-P", "prefork"], {}),
    "threads with options": (
        ["--broker", "redis://127.0.0.1:9/9", "--result-backend", "rpc://"],
        ["-P", "threads", "--prefetch-multiplier", "8"],
        {},
    ),
    "config": (
        ["--config", "tests.acceptance.late_config"],
        ["-P", "prefork"],
        {"CELERY_BROKER_READ_URL": "redis://127.0.0.1:9/9", "LATE_HANDLER": "celeryd_init"},
    ),
}


@pytest.mark.parametrize(("before", "after", "variables"), WAYS.values(), ids=WAYS)
def test_its_worker_claims(
    service: Service, before: list[str], after: list[str], variables: dict[str, str]
) -> None:
    worker = service.processes(
        [
            *CELERY,
            "-A",
            "tests.acceptance.late",
            *before,
            "worker",
            "-c",
            "2",
            "-l",
            "INFO",
            *after,
        ],
        variables,
    )
    worker.wait_for_line("ready.", 60)

    job_id = service.enqueue("tests.acceptance.late.fence", queue="late")

    ended = service.ended(job_id)
    assert ended.state is State.SUCCEEDED
    assert ended.result == f'["{job_id}", 1]'.encode()
    line = worker.wait_for_line("The app is durable: its own")
    for name in ("result_backend", "worker_consumer", "worker_prefetch_multiplier"):
        assert name in line
    assert "secret" not in worker.output
    # What one job makes the current app is not the next one's.
    for name in [*["make_another_app"] * 4, "send_shared"]:
        ended = service.ended(service.enqueue(f"tests.acceptance.late.{name}", queue="late"))
        assert ended.state is State.SUCCEEDED, ended.error
    assert service.ended(json.loads(ended.result or b"")).result == b'"here"'


def test_its_worker_is_refused_in_one_sentence(service: Service) -> None:
    worker = service.processes(
        [*CELERY, "-A", "tests.acceptance.late", "worker"], {"LATE_SERIALIZER": "pickle"}
    )

    assert worker.wait(60) == 2
    assert worker.output == (
        "Error: task_serializer is 'pickle', but a durable app speaks JSON only;"
        " set it to 'json'.\n"
    )


@pytest.mark.parametrize("handler", ["worker_init", "celeryd_after_setup"])
def test_a_worker_whose_app_becomes_durable_too_late_is_refused(
    service: Service, handler: str
) -> None:
    worker = service.processes(
        [*CELERY, "-A", "tests.acceptance.late", "worker", "-P", "threads"],
        {"LATE_HANDLER": handler},
    )

    assert worker.wait(60) == 2
    assert worker.output.splitlines()[-1] == (
        "Error: durable() was called when this app's worker was made already; call it where the"
        " app is made, or in a handler of celeryd_init at the latest."
    )
