"""The fields of `self.request`."""

from __future__ import annotations

import uuid
from typing import Any

from tests.parity.rows import row
from tests.parity.side import PATIENCE, Side, chain, chord, group


def _seen(s: Side, *args: Any, **options: Any) -> dict[str, Any]:
    seen: dict[str, Any] = s.t.request.apply_async(args, **options).get(timeout=PATIENCE)
    return seen


def _field(says: str, field: str, expected: Any, **options: Any) -> None:
    @row(f"request.{field} {says}", expected)
    def ask(s: Side) -> Any:
        return _seen(s, **options)[field]


_field("is the task's name", "task", "parity.request")
_field("is empty without arguments", "args", [])
_field("is empty without keyword arguments", "kwargs", {})
_field("begins at 0", "retries", 0)
_field("is false in a worker", "is_eager", False)
_field("is false in a worker", "called_directly", False)
_field("is None without a group", "group", None)
_field("is None without a chord", "chord", None)
_field("is None without a chain", "chain", None)
_field("is None without links", "callbacks", None)
_field("is None without error links", "errbacks", None)
_field("is None with protocol 2", "utc", None)
_field("is None without a countdown", "eta", None)
_field("is None without one", "expires", None)
_field("is two Nones without limits", "timelimit", [None, None])
_field("has what the call gives", "timelimit", [9, 8], time_limit=9, soft_time_limit=8)
_field("is None for one that nobody's task called", "parent_id", None)
_field("is None without one", "shadow", None)
_field("has the given one", "shadow", "another", shadow="another")
_field("is empty without stamps", "stamps", {})
_field("is py", "lang", "py")
_field("is 0 in the beginning", "replaced_task_nesting", 0)
_field("is false by default", "ignore_result", False)
_field("is None outside of a group", "group_index", None)
_field("shows the arguments", "argsrepr", "()")
_field("shows the keyword arguments", "kwargsrepr", "{}")
_field("is the given text", "argsrepr", "(secret)", argsrepr="(secret)")


@row("request.id is the result's id", True)
def own_id(s: Side) -> Any:
    result = s.t.request.delay()
    return result.get(timeout=PATIENCE)["id"] == result.id


@row("request.args and kwargs are what was sent", [[1, "two"], {"three": 3}])
def arguments(s: Side) -> Any:
    seen = s.t.request.apply_async((1, "two"), {"three": 3}).get(timeout=PATIENCE)
    return [seen["args"], seen["kwargs"]]


@row("request.correlation_id is the job's id", True)
def correlation_id(s: Side) -> Any:
    result = s.t.request.delay()
    return result.get(timeout=PATIENCE)["correlation_id"] == result.id


@row("request.root_id of a first job is its own id", True)
def root_id(s: Side) -> Any:
    result = s.t.request.delay()
    return result.get(timeout=PATIENCE)["root_id"] == result.id


@row("request.parent_id and root_id of a job that a task called are the caller's", [True, True])
def called_by_a_task(s: Side) -> Any:
    caller = s.t.spawns.delay()
    child = s.app.AsyncResult(caller.get(timeout=PATIENCE)).get(timeout=PATIENCE)
    return [child["parent_id"] == caller.id, child["root_id"] == caller.id]


@row("request.reply_to is the producer's own queue", True)
def reply_to(s: Side) -> Any:
    return bool(uuid.UUID(_seen(s)["reply_to"]))


@row(
    "request.delivery_info has exchange, routing key, priority and redelivered",
    ["exchange", "priority", "redelivered", "routing_key"],
)
def delivery_info(s: Side) -> Any:
    return sorted(_seen(s)["delivery_info"])


@row("request.delivery_info of the default queue", ["", "celery", 0, False])
def delivery_info_values(s: Side) -> Any:
    info = _seen(s)["delivery_info"]
    return [info["exchange"], info["routing_key"], info["priority"], bool(info["redelivered"])]


@row("request.delivery_info has the call's priority", 5)
def delivery_priority(s: Side) -> Any:
    return _seen(s, priority=5)["delivery_info"]["priority"]


@row("request.delivery_info says redelivered after Reject(requeue=True)", True)
def redelivered(s: Side) -> Any:
    return s.t.redelivered.delay(s.key()).get(timeout=PATIENCE)


@row("request.hostname is the worker's", True)
def hostname(s: Side) -> Any:
    return _seen(s)["hostname"] == s.threads


@row("request.origin names the producer's process", True)
def origin(s: Side) -> Any:
    return "@" in _seen(s)["origin"]


@row("request.headers has the call's own headers", "green")
def headers(s: Side) -> Any:
    return (_seen(s, headers={"colour": "green"})["headers"] or {}).get("colour")


@row("request.properties has reply_to and correlation_id", [True, True])
def properties(s: Side) -> Any:
    seen = _seen(s)["properties"] or {}
    return ["reply_to" in seen, "correlation_id" in seen]


@row("request.eta is set for a countdown", True)
def eta(s: Side) -> Any:
    return bool(_seen(s, countdown=0.2)["eta"])


@row("request.expires is set for a call with one", True)
def expires(s: Side) -> Any:
    return bool(_seen(s, expires=60)["expires"])


@row("request.ignore_result is the call's", True)
def ignore_result(s: Side) -> Any:
    key = s.key()
    s.t.request.apply_async(ignore_result=True, link=s.t.push_field.s(key, "ignore_result"))
    return s.notes(f"pushed:{key}", 1) == ["True"]


@row("request.group of a group's member is the group's id", True)
def of_a_group(s: Side) -> Any:
    result = group(s.t.request.s(), s.t.request.s()).apply_async()
    return [seen["group"] for seen in result.get(timeout=PATIENCE)] == [result.id] * 2


@row("request.group_index counts a chord's members", [0, 1])
def group_index(s: Side) -> Any:
    seen = chord([s.t.request.s(), s.t.request.s()], s.t.echo.s()).apply_async()
    return [one["group_index"] for one in seen.get(timeout=PATIENCE)]


@row("request.chord of a chord's member is the body's signature", True)
def of_a_chord(s: Side) -> Any:
    seen = chord([s.t.request.s()] * 2, s.t.echo.s()).apply_async().get(timeout=PATIENCE)
    return all((one["chord"] or {}).get("task") == "parity.echo" for one in seen)


@row("request.chain of a chain's first task has the later steps", 2)
def of_a_chain(s: Side) -> Any:
    result = chain(s.t.request.s(), s.t.push.si(s.key()), s.t.echo.si(1)).apply_async()
    result.get(timeout=PATIENCE)
    return len(result.parent.parent.get(timeout=PATIENCE)["chain"])


@row("request.parent_id in a chain is the step before", True)
def parent_in_a_chain(s: Side) -> Any:
    result = chain(s.t.echo.s(1), s.t.request.si()).apply_async()
    return result.get(timeout=PATIENCE)["parent_id"] == result.parent.id


@row("request.root_id in a chain is the first step", True)
def root_in_a_chain(s: Side) -> Any:
    result = chain(s.t.echo.s(1), s.t.echo.s(), s.t.request.si()).apply_async()
    return result.get(timeout=PATIENCE)["root_id"] == result.parent.parent.id


@row("request.callbacks of a linked task has the link", "parity.echo")
def callbacks(s: Side) -> Any:
    return _seen(s, link=s.t.echo.s())["callbacks"][0]["task"]


@row("request.errbacks of a task with an error link has it", "parity.echo")
def errbacks(s: Side) -> Any:
    return _seen(s, link_error=s.t.echo.s())["errbacks"][0]["task"]


@row("request.stamps has a stamped call's stamps", {"colour": "green"})
def stamps(s: Side) -> Any:
    signature = s.t.request.s()
    signature.stamp(colour="green")
    return signature.apply_async().get(timeout=PATIENCE)["stamps"]


@row("request.id is the task_id that the call gives", True)
def given_id(s: Side) -> Any:
    wanted = str(uuid.uuid4())
    return _seen(s, task_id=wanted)["id"] == wanted
