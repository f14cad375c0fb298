"""Signals and the hooks of task classes: their order, and the state that each of them reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import signals

from tests.parity.rows import row
from tests.parity.side import PREFORK, Side


def _signals(s: Side, result: Any, last: str = "postrun") -> list[str]:
    key = f"signals:{result.id}"
    s.until(lambda: any(note.startswith(last) for note in s.note.lrange(key, 0, -1)))
    return list(s.note.lrange(key, 0, -1))


def _hooks(s: Side, result: Any, last: str) -> list[str]:
    key = f"hooks:{result.id}"
    s.until(lambda: any(note.startswith(last) for note in s.note.lrange(key, 0, -1)))
    return list(s.note.lrange(key, 0, -1))


_OF_A_SUCCESS = ["received", "prerun", "success SUCCESS", "postrun SUCCESS SUCCESS"]
_OF_A_FAILURE = ["received", "prerun", "failure Trouble FAILURE", "postrun FAILURE FAILURE"]


@row("the signals of a success, and the states that they read", _OF_A_SUCCESS)
def success(s: Side) -> Any:
    return _signals(s, s.t.echo.delay(1))


@row("the signals of a success in processes (prefork)", _OF_A_SUCCESS)
def success_prefork(s: Side) -> Any:
    return _signals(s, s.t.echo.apply_async((1,), queue=PREFORK))


@row("the signals of a failure, and the states that they read", _OF_A_FAILURE)
def failure(s: Side) -> Any:
    return _signals(s, s.t.fail.delay())


@row("the signals of a failure in processes (prefork)", _OF_A_FAILURE)
def failure_prefork(s: Side) -> Any:
    return _signals(s, s.t.fail.apply_async(queue=PREFORK))


@row(
    "the signals of a try that is retried, and the states that they read",
    ["retry RETRY", "postrun RETRY RETRY"],
)
def retry(s: Side) -> Any:
    notes = _signals(s, s.t.later.delay(1.5), "postrun RETRY")
    return [note for note in notes if note.startswith(("retry", "postrun RETRY"))]


@row(
    "task_revoked is sent for a job that is terminated (prefork)",
    ["revoked terminated=True expired=False"],
)
def terminated(s: Side) -> Any:
    gate = s.key()
    result = s.t.hold.apply_async((gate,), queue=PREFORK)
    s.begun(gate)
    result.revoke(terminate=True, signal="SIGKILL")
    return [note for note in _signals(s, result, "revoked") if note.startswith("revoked")]


@row(
    "task_revoked is sent for a job that was revoked while it waited",
    ["revoked terminated=False expired=False"],
)
def revoked(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), countdown=1)
    result.revoke()
    return [note for note in _signals(s, result, "revoked") if note.startswith("revoked")]


@row("task_revoked is sent for a job that has expired", ["revoked terminated=False expired=True"])
def expired(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), expires=-1)
    return [note for note in _signals(s, result, "revoked") if note.startswith("revoked")]


@row(
    "task_revoked is sent for a job that expires before its countdown is over",
    ["revoked terminated=False expired=True"],
)
def expired_while_it_waited(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), countdown=1, expires=0.5)
    return [note for note in _signals(s, result, "revoked") if note.startswith("revoked")]


@row(
    "task_unknown is sent for a task that the worker does not know",
    "unknown",
    durable="",
    why="A worker claims only the tasks that it knows: the job waits for one that knows it.",
)
def unknown(s: Side) -> Any:
    result = s.app.send_task("parity.no_such_task")
    key = f"signals:{result.id}"
    s.until(lambda: s.note.lrange(key, 0, -1), 20.0 if s.name == "stock" else 2.0)
    notes = s.note.lrange(key, 0, -1)
    return notes[0].partition(" ")[0] if notes else ""


@row(
    "the hooks of a success, and the states that they read",
    ["before_start", "on_success SUCCESS", "after_return=SUCCESS SUCCESS"],
)
def hooks_of_success(s: Side) -> Any:
    return _hooks(s, s.t.hooked.delay("fine"), "after_return")


@row(
    "the hooks of a failure, and the states that they read",
    ["before_start", "on_failure FAILURE", "after_return=FAILURE FAILURE"],
)
def hooks_of_failure(s: Side) -> Any:
    return _hooks(s, s.t.hooked.delay("fail"), "after_return")


@row(
    "the hooks of a try that is retried, and the state that it reads",
    ["before_start", "on_retry RETRY"],
)
def hooks_of_retry(s: Side) -> Any:
    return _hooks(s, s.t.hooked.delay("retry"), "after_return=SUCCESS")[:2]


@row(
    "the hooks of a success in processes (prefork)",
    ["before_start", "on_success SUCCESS", "after_return=SUCCESS SUCCESS"],
)
def hooks_in_prefork(s: Side) -> Any:
    return _hooks(s, s.t.hooked.apply_async(("fine",), queue=PREFORK), "after_return")


def _published(s: Side, signal: Any, send: Callable[[], Any]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def handler(**told: Any) -> None:
        seen.append(told)

    signal.connect(handler)
    try:
        send()
    finally:
        signal.disconnect(handler)
    return seen


@row("before_task_publish has the task's name and the routing key", ["parity.echo", "celery"])
def before_publish(s: Side) -> Any:
    (told,) = _published(s, signals.before_task_publish, lambda: s.t.echo.delay(1))
    return [told["sender"], told["routing_key"]]


@row("before_task_publish may change the headers", "blue")
def changed_headers(s: Side) -> Any:
    def paint(headers: dict[str, Any], **_: Any) -> None:
        headers["colour"] = "blue"

    signals.before_task_publish.connect(paint)
    try:
        result = s.t.request.delay()
    finally:
        signals.before_task_publish.disconnect(paint)
    seen = result.get(timeout=20)
    return (seen["headers"] or {}).get("colour")


@row("after_task_publish has the job's headers", True)
def after_publish(s: Side) -> Any:
    sent: list[Any] = []
    told = _published(s, signals.after_task_publish, lambda: sent.append(s.t.echo.delay(1)))
    return told[0]["headers"]["id"] == sent[0].id
