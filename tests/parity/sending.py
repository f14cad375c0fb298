"""Sending: times, queues, priorities, names, and what is refused."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu import Exchange, Queue

from tests.parity.rows import row
from tests.parity.side import PATIENCE, PREFORK, Side


def _waited(began: float) -> bool:
    return time.monotonic() - began >= 0.7


@row("a countdown is waited for", [True, 1])
def countdown(s: Side) -> Any:
    began = time.monotonic()
    value = s.t.echo.apply_async((1,), countdown=0.8).get(timeout=PATIENCE)
    return [_waited(began), value]


@row("an eta with a zone is waited for", True)
def eta(s: Side) -> Any:
    began = time.monotonic()
    moment = datetime.now(UTC) + timedelta(seconds=0.8)
    s.t.echo.apply_async((1,), eta=moment).get(timeout=PATIENCE)
    return _waited(began)


@row("an eta in the past runs at once", 1)
def past(s: Side) -> Any:
    moment = datetime.now(UTC) - timedelta(hours=1)
    return s.t.echo.apply_async((1,), eta=moment).get(timeout=PATIENCE)


@row("expires as a datetime in the future does not keep a job from running", 1)
def expires_later(s: Side) -> Any:
    moment = datetime.now(UTC) + timedelta(minutes=1)
    return s.t.echo.apply_async((1,), expires=moment).get(timeout=PATIENCE)


@row("the queue of the call counts", PREFORK)
def queue(s: Side) -> Any:
    seen = s.t.request.apply_async(queue=PREFORK).get(timeout=PATIENCE)
    return seen["delivery_info"]["routing_key"]


@row("a Queue object may be given", PREFORK)
def queue_object(s: Side) -> Any:
    given = Queue(PREFORK, Exchange(""), routing_key=PREFORK)
    seen = s.t.request.apply_async(queue=given).get(timeout=PATIENCE)
    return seen["delivery_info"]["routing_key"]


@row("the routing key of the call goes to the queue of that name", 1)
def routing_key(s: Side) -> Any:
    return s.t.echo.apply_async((1,), exchange="", routing_key="celery").get(timeout=PATIENCE)


@row("send_task calls a task by its name", 3)
def send_task(s: Side) -> Any:
    return s.app.send_task("parity.add", (1, 2)).get(timeout=PATIENCE)


@row("a job may be given an id", True)
def task_id(s: Side) -> Any:
    wanted = str(uuid.uuid4())
    result = s.t.echo.apply_async((1,), task_id=wanted)
    return result.get(timeout=PATIENCE) == 1 and result.id == wanted


@row("arguments that do not fit are refused before they are sent", "TypeError")
def too_few(s: Side) -> Any:
    return s.raised(lambda: s.t.add.delay(1))


@row("a task with typing=False is sent with whatever arguments, and fails", "FAILURE")
def untyped(s: Side) -> Any:
    return s.state(s.t.untyped.delay(1, 2, 3), "FAILURE")


@row("arguments that JSON cannot hold are refused", "EncodeError")
def unserialisable(s: Side) -> Any:
    return s.raised(lambda: s.t.echo.delay(object()))


@row("keyword arguments reach the task", 7)
def keywords(s: Side) -> Any:
    return s.t.add.apply_async(kwargs={"x": 3, "y": 4}).get(timeout=PATIENCE)


@row("apply() runs the task here and gives its value", [3, "SUCCESS"])
def apply(s: Side) -> Any:
    result = s.t.add.apply((1, 2))
    return [result.get(), result.state]


@row("apply() of a failing task gives its exception", ["FAILURE", "Trouble"])
def apply_fails(s: Side) -> Any:
    result = s.t.fail.apply()
    return [result.state, type(result.result).__name__]


@row("apply(throw=True) raises", "Trouble")
def apply_throws(s: Side) -> Any:
    return s.raised(lambda: s.t.fail.apply(throw=True))


@row("task_always_eager runs .delay() here", [True, 3])
def always_eager(s: Side) -> Any:
    s.app.conf.task_always_eager = True
    try:
        result = s.t.add.delay(1, 2)
        return [type(result).__name__ == "EagerResult", result.get()]
    finally:
        s.app.conf.task_always_eager = False


@row("calling the task is calling the function", 3)
def call(s: Side) -> Any:
    return s.t.add(1, 2)


@row("a jobs's arguments may be as large as half a megabyte", 500_000)
def large(s: Side) -> Any:
    return len(s.t.echo.delay("x" * 500_000).get(timeout=PATIENCE))


@row("jobs of one queue begin in the order in which they were sent (prefork)", True)
def order(s: Side) -> Any:
    key = s.key()
    for number in range(6):
        s.t.push.apply_async((key, number), queue=PREFORK)
    seen = s.notes(f"pushed:{key}", 6)
    return sorted(seen) == [str(number) for number in range(6)]


@row("a compressed message is read", 1)
def compressed(s: Side) -> Any:
    return s.t.echo.apply_async((1,), compression="gzip").get(timeout=PATIENCE)


@row(
    "a pickled message is sent",
    "",
    durable="ConfigurationError",
    why="A durable app speaks JSON only, and refuses before it answers an id.",
)
def pickled(s: Side) -> Any:
    return s.raised(lambda: s.t.echo.apply_async((1,), serializer="pickle", queue="nobody"))


@row("shadow changes the name that is shown, not the task that runs", 1)
def shadow(s: Side) -> Any:
    return s.t.echo.apply_async((1,), shadow="another").get(timeout=PATIENCE)


@row(
    "an id that is sent again after its end runs again",
    2,
    durable=1,
    why="A row has one end: an identical repeat is answered with the job that is there.",
)
def repeated(s: Side) -> Any:
    key, wanted = s.key(), str(uuid.uuid4())
    for _ in range(2):
        s.t.count.apply_async((key,), task_id=wanted).get(timeout=PATIENCE)
        s.notes(f"signals:{wanted}", 3)
    s.until(lambda: int(s.note.get(f"count:{key}") or 0) == 2, 1.0)
    return int(s.note.get(f"count:{key}") or 0)


@row(
    "an id that is sent again with other arguments is accepted",
    "",
    durable="Conflict",
    why="One id is one job; the second request is told so before it is sent.",
)
def reused(s: Side) -> Any:
    wanted = str(uuid.uuid4())
    s.t.echo.apply_async((1,), task_id=wanted, queue="nobody")
    return s.raised(lambda: s.t.echo.apply_async((2,), task_id=wanted, queue="nobody"))


@row(
    "a fanout exchange takes a task",
    "",
    durable="InvalidRequest",
    why="One id cannot be the job of several workers; a remote control command reaches each.",
)
def broadcast(s: Side) -> Any:
    everybody = Queue(f"all-{s.key()}", Exchange("everybody", type="fanout"))
    return s.raised(lambda: s.t.echo.apply_async((1,), queue=everybody))


@row(
    "an exchange that nobody has bound takes a task, which is lost",
    "",
    durable="InvalidRequest",
    why="A task message that becomes no row answers with no id.",
)
def unbound(s: Side) -> Any:
    return s.raised(lambda: s.t.echo.apply_async((1,), exchange=s.key(), routing_key="none"))
