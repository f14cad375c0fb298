"""Events: what monitors such as Flower are sent."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tests.parity.rows import row
from tests.parity.side import PREFORK, Side


def _of(s: Side, act: Callable[[str], Any], *kinds: str) -> list[dict[str, Any]]:
    """The events of a job that `act` sends under the id that it is given, with all of `kinds`.

    Nothing orders the events of different senders: the producer tells `task-sent`, and the
    thread of a first attempt may tell `task-retried` after the second attempt has succeeded.
    """
    job = str(uuid.uuid4())
    act(job)
    return s.events(job, *kinds)


def _kinds(s: Side, act: Callable[[str], Any], *kinds: str) -> list[str]:
    return sorted({event["type"] for event in _of(s, act, *kinds)})


def _one(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((event for event in events if event["type"] == kind), {})


@row(
    "a success is sent, received, started and succeeded",
    ["task-received", "task-sent", "task-started", "task-succeeded"],
)
def success(s: Side) -> Any:
    return _kinds(
        s,
        lambda job: s.t.echo.apply_async((1,), task_id=job),
        *("task-sent", "task-received", "task-started", "task-succeeded"),
    )


@row(
    "a failure is sent, received, started and failed",
    ["task-failed", "task-received", "task-sent", "task-started"],
)
def failure(s: Side) -> Any:
    return _kinds(
        s,
        lambda job: s.t.fail.apply_async(task_id=job),
        *("task-sent", "task-received", "task-started", "task-failed"),
    )


@row("a retry tells task-retried", True)
def retry(s: Side) -> Any:
    kinds = _kinds(s, lambda job: s.t.flaky.apply_async((1,), task_id=job), "task-retried")
    return "task-retried" in kinds


@row("a job with acks_late that is rejected tells task-rejected", True)
def rejected(s: Side) -> Any:
    kinds = _kinds(s, lambda job: s.t.rejected_late.apply_async(task_id=job), "task-rejected")
    return "task-rejected" in kinds


@row("a terminated job tells task-revoked (prefork)", True)
def revoked(s: Side) -> Any:
    def act(job: str) -> None:
        gate = s.key()
        result = s.t.hold.apply_async((gate,), task_id=job, queue=PREFORK)
        s.begun(gate)
        result.revoke(terminate=True, signal="SIGKILL")

    return "task-revoked" in _kinds(s, act, "task-revoked")


@row("task-received has name, arguments and retries", ["parity.echo", "(1,)", "{}", 0])
def received(s: Side) -> Any:
    event = _one(
        _of(s, lambda job: s.t.echo.apply_async((1,), task_id=job), "task-received"),
        "task-received",
    )
    return [event.get(field) for field in ("name", "args", "kwargs", "retries")]


@row("task-received has the eta of a countdown", True)
def received_eta(s: Side) -> Any:
    events = _of(
        s, lambda job: s.t.echo.apply_async((1,), task_id=job, countdown=0.2), "task-received"
    )
    return bool(_one(events, "task-received").get("eta"))


@row("task-received has the expiry of a job with one", True)
def received_expires(s: Side) -> Any:
    events = _of(
        s, lambda job: s.t.echo.apply_async((1,), task_id=job, expires=60), "task-received"
    )
    return bool(_one(events, "task-received").get("expires"))


@row("task-succeeded has the result and the run time", ["1", True])
def succeeded(s: Side) -> Any:
    event = _one(
        _of(s, lambda job: s.t.echo.apply_async((1,), task_id=job), "task-succeeded"),
        "task-succeeded",
    )
    return [event.get("result"), isinstance(event.get("runtime"), float)]


@row("task-failed has the exception and the traceback", [True, True])
def failed(s: Side) -> Any:
    event = _one(
        _of(s, lambda job: s.t.fail.apply_async(task_id=job), "task-failed"), "task-failed"
    )
    return [
        event.get("exception") == "Trouble('no luck', 7)",
        "in fail" in event.get("traceback", ""),
    ]


@row("task-sent has queue, routing key and root", ["celery", "celery", True])
def sent(s: Side) -> Any:
    event = _one(
        _of(s, lambda job: s.t.echo.apply_async((1,), task_id=job), "task-sent"), "task-sent"
    )
    return [event.get("queue"), event.get("routing_key"), event.get("root_id") == event.get("uuid")]


@row("task-started has the worker's host and pid", [True, True])
def started(s: Side) -> Any:
    event = _one(
        _of(s, lambda job: s.t.echo.apply_async((1,), task_id=job), "task-started"),
        "task-started",
    )
    return [event.get("hostname") == s.threads, isinstance(event.get("pid"), int)]


@row("a task's own event is told", "green")
def custom(s: Side) -> Any:
    events = _of(s, lambda job: s.t.sends_event.apply_async(task_id=job), "task-custom")
    return _one(events, "task-custom").get("colour")
