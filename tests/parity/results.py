"""Results: what `AsyncResult` gives of a task's return value or exception."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

from celery.result import AsyncResult, GroupResult, ResultSet, result_from_tuple

from tests.parity.rows import row
from tests.parity.side import PATIENCE, Side, group

_VALUES: dict[str, Any] = {
    "a whole number": 7,
    "a fraction": 0.1,
    "a large float": 1e22,
    "a text beyond ASCII": "zażółć 🚀",
    "a text with a NUL": "a\x00b",
    "a truth value": True,
    "None": None,
    "a list": [1, [2, "three"]],
    "an object": {"a": {"b": [1, None]}},
    "a decimal": decimal.Decimal("1.10"),
    "a UUID": uuid.UUID(int=5),
    "a date": datetime.date(2026, 11, 30),
    "a time with a zone": datetime.datetime(2026, 11, 30, 8, 5, tzinfo=datetime.UTC),
    "bytes": b"\x00\xff",
}


def _value(name: str, value: Any) -> None:
    @row(f"{name} comes back as it was sent", repr(value))
    def come_back(s: Side) -> Any:
        return repr(s.t.echo.delay(value).get(timeout=PATIENCE))


for _name, _sent in _VALUES.items():
    _value(_name, _sent)


@row("a tuple comes back as a list", [1, 2])
def tuples(s: Side) -> Any:
    return s.t.echo.delay((1, 2)).get(timeout=PATIENCE)


@row("get() raises the task's own exception", ["Trouble", ("no luck", 7)])
def raises(s: Side) -> Any:
    exc = s.error(s.t.fail.delay())
    return [type(exc).__name__, exc.args]


@row("get() raises a built-in exception as itself", ["ValueError", ("not a number",)])
def raises_builtin(s: Side) -> Any:
    exc = s.error(s.t.fail_builtin.delay())
    return [type(exc).__name__, exc.args]


@row("get(propagate=False) returns the exception", "Trouble")
def propagate(s: Side) -> Any:
    return type(s.t.fail.delay().get(timeout=PATIENCE, propagate=False)).__name__


@row("maybe_throw() raises the exception", "Trouble")
def maybe_throw(s: Side) -> Any:
    result = s.t.fail.delay()
    s.state(result, "FAILURE")
    return s.raised(result.maybe_throw)


@row("the traceback names the task's function and the exception", [True, True, True])
def traceback(s: Side) -> Any:
    result = s.t.fail.delay()
    s.state(result, "FAILURE")
    text = result.traceback
    return [text.startswith("Traceback"), "in fail" in text, "Trouble" in text]


@row("get(timeout) raises TimeoutError when it is too early", "TimeoutError")
def timeout(s: Side) -> Any:
    result = s.t.echo.apply_async((1,), queue="nobody")
    return s.raised(lambda: result.get(timeout=0.1))


@row("get(callback) is called with the id and the value", [True, 5])
def callback(s: Side) -> Any:
    seen: list[Any] = []
    result = s.t.echo.delay(5)
    result.get(timeout=PATIENCE, callback=lambda task_id, value: seen.extend([task_id, value]))
    return [seen[0] == result.id, seen[1]]


@row("get(on_message) is called with the meta of the end", ["SUCCESS", 6])
def on_message(s: Side) -> Any:
    gate, seen = s.key(), list[Any]()
    result = s.t.hold.delay(gate)
    s.begun(gate)
    s.open(gate)
    result.get(timeout=PATIENCE, on_message=seen.append)
    last = seen[-1] if seen else {}
    return [last.get("status"), 6 if last.get("result") == gate else last.get("result")]


@row("get(on_message) of a group is called with the end of each part", ["SUCCESS", "SUCCESS"])
def group_on_message(s: Side) -> Any:
    gates, seen = [s.key(), s.key()], list[Any]()
    result = group(s.t.hold.s(gate) for gate in gates).apply_async()

    def let_go(*_: Any) -> None:
        while gates:
            s.open(gates.pop())

    result.get(
        timeout=PATIENCE,
        on_message=lambda meta: seen.append(meta["status"]),
        on_interval=let_go,  # once it waits, so that no part has ended before
    )
    return seen


@row("get(on_interval) is called while it waits", True)
def on_interval(s: Side) -> Any:
    seen: list[int] = []
    result = s.t.echo.apply_async((1,), queue="nobody")
    s.raised(lambda: result.get(timeout=1.2, interval=0.1, on_interval=lambda *_: seen.append(1)))
    return bool(seen)


@row("date_done is a datetime", "datetime")
def date_done(s: Side) -> Any:
    result = s.t.echo.delay(1)
    s.state(result, "SUCCESS")
    return type(result.date_done).__name__


@row("name, args, kwargs, worker, queue and retries are None without result_extended", [None] * 6)
def not_extended(s: Side) -> Any:
    result = s.t.echo.delay(1)
    s.state(result, "SUCCESS")
    return [
        result.name, result.args, result.kwargs, result.worker, result.queue, result.retries
    ]  # fmt: skip


@row("forget() forgets the result", [None, True])
def forget(s: Side) -> Any:
    result = s.t.echo.delay(5)
    result.get(timeout=PATIENCE)
    result.forget()
    again: Any = AsyncResult(result.id, app=s.app)
    return [again.result, again.state in ("PENDING", "SUCCESS")]


@row(
    "a result that was forgotten reads PENDING",
    "PENDING",
    durable="SUCCESS",
    why="'Where is my job?' always has an answer: the value is dropped, that it ended is not.",
)
def forgotten_state(s: Side) -> Any:
    result = s.t.echo.delay(5)
    result.get(timeout=PATIENCE)
    result.forget()
    return AsyncResult(result.id, app=s.app).state


@row("get() within a task is refused", "RuntimeError")
def sync_subtask(s: Side) -> Any:
    return type(s.error(s.t.waits_for_child.delay())).__name__


@row("get() within a task is allowed by allow_join_result", 1)
def allowed_subtask(s: Side) -> Any:
    return s.t.waits_allowed.delay().get(timeout=PATIENCE)


@row("a value that JSON cannot hold fails the task", ["FAILURE", "EncodeError"])
def unserialisable(s: Side) -> Any:
    result = s.t.odd.delay()
    return [s.state(result, "FAILURE"), type(result.result).__name__]


@row("the children of a task are what it called", 1)
def children(s: Side) -> Any:
    result = s.t.children.delay()
    result.get(timeout=PATIENCE)
    return len(result.children)


@row("collect() walks through results and children", 2)
def collect(s: Side) -> Any:
    result = s.t.children.delay()
    return len([value for _, value in result.collect(timeout=PATIENCE)])


@row("get_leaf() of a chain is its last value", 4)
def leaf(s: Side) -> Any:
    result = (s.t.add.s(1, 1) | s.t.add.s(2)).delay()
    result.get(timeout=PATIENCE)
    first = result.parent
    s.state(first, "SUCCESS")
    return first.get_leaf()


@row("as_tuple() and result_from_tuple give the same result", True)
def as_tuple(s: Side) -> Any:
    result = (s.t.echo.s(1) | s.t.echo.s()).delay()
    again: Any = result_from_tuple(result.as_tuple(), app=s.app)
    return again.id == result.id and again.parent.id == result.parent.id


@row("as_list() names the chain from its end", 3)
def as_list(s: Side) -> Any:
    result = (s.t.echo.s(1) | s.t.echo.s() | s.t.echo.s()).delay()
    return len(result.as_list())


@row("a result equals another one of the same id", True)
def equality(s: Side) -> Any:
    return AsyncResult("an-id", app=s.app) == AsyncResult("an-id", app=s.app)


@row("get() of a job whose result is ignored returns None at once", None)
def get_ignored(s: Side) -> Any:
    return s.t.silent.delay(s.key()).get(timeout=5)


@row("a ResultSet joins in the order of its members", [1, 2, 3])
def result_set(s: Side) -> Any:
    return ResultSet([s.t.echo.delay(n) for n in (1, 2, 3)], app=s.app).join(timeout=PATIENCE)


@row("iter_native() gives every member", [0, 1, 2, 3])
def iter_native(s: Side) -> Any:
    results = ResultSet([s.t.echo.delay(n) for n in range(4)], app=s.app)
    return sorted(meta["result"] for _, meta in results.iter_native(timeout=PATIENCE))


@row("join_native() gives the values in order", [0, 1, 2])
def join_native(s: Side) -> Any:
    results = ResultSet([s.t.echo.delay(n) for n in range(3)], app=s.app)
    return results.join_native(timeout=PATIENCE)


@row("a GroupResult is saved and restored", [3, True])
def saved(s: Side) -> Any:
    result = group(s.t.echo.s(n) for n in range(3)).apply_async()
    result.save()
    restored = GroupResult.restore(result.id, app=s.app)
    return [len(restored), restored.id == result.id]


@row("a GroupResult that was deleted is not restored", None)
def deleted(s: Side) -> Any:
    result = group(s.t.echo.s(n) for n in range(2)).apply_async()
    result.save()
    result.delete()
    return GroupResult.restore(result.id, app=s.app)


@row("completed_count() of a group that is done is its size", 3)
def completed_count(s: Side) -> Any:
    result = group(s.t.echo.s(n) for n in range(3)).apply_async()
    result.get(timeout=PATIENCE)
    return result.completed_count()


@row("then() calls back when the result is there", 9)
def then(s: Side) -> Any:
    seen: list[Any] = []
    result = s.t.echo.delay(9)
    result.then(lambda done: seen.append(done.result))
    result.get(timeout=PATIENCE)
    s.until(lambda: seen, 1.0)
    return seen[0] if seen else None


@row("then() of a group calls back when every part's result is there", [1, 2])
def group_then(s: Side) -> Any:
    seen: list[Any] = []
    result = group(s.t.echo.s(1), s.t.echo.s(2)).apply_async()
    result.then(lambda done: seen.append([part.result for part in done]))
    result.get(timeout=PATIENCE)
    return seen[0] if seen else None


@row("get() of a set takes what was applied here too", [1, 2])
def mixed_set(s: Side) -> Any:
    return ResultSet([s.t.echo.delay(1), s.t.echo.apply((2,))], app=s.app).get(timeout=PATIENCE)
