"""What follows a job's end: the jobs that end with it, unrun, and the errbacks to call.

Read from the job's own message: `celery.canvas` of Celery 5.7 puts every later step of a chain,
with all that is in it, into the message of the step before, and a chord's body into the arguments
of the task that waits for the chord's header. What is garbage yields nothing, and raises nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.errors import InvalidRequest
from worker.jobs.ids import checked_id
from worker.jobs.job import Ended, Message, NewJob
from worker.jobs.message import new_job
from worker.jobs.queues import checked_queue, list_of
from worker.jobs.states import State

#: The task that calls the errbacks of a job that failed where no Celery app was at hand.
CALL_ERRBACKS: Final = "celery_ledger.call_errbacks"
#: Celery's task that waits for a chord's header and then enqueues the chord's body.
CHORD_UNLOCK: Final = "celery.chord_unlock"
#: The end of a body that says that nothing follows, as Celery and `worker.jobs.message` write it.
NOTHING_FOLLOWS: Final = b'{"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
#: Longest reason, in characters.
REASON_LIMIT: Final = 2000


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A job that has just become final, as far as what follows it depends on it.

    Attributes:
        state: succeeded means that its task raised `Ignore`: a return carries what follows itself.
    """

    id: str
    task: str
    queue: str
    priority: int
    state: State
    message: Message
    error: str | None = None
    result: bytes | None = None
    result_type: str | None = None
    traceback: str | None = None
    root_id: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """A job that a message names, and that was to be enqueued after the message's own job."""

    id: str
    task: str
    queue: str
    group_id: str | None


def ended_after(job: FinalJob, *, because: Ended | None = None) -> list[Ended]:
    """The jobs that end with `job`: nothing will ever enqueue them.

    After a failure they have failed, with its exception; else they are cancelled. Each one's
    `parent_id` names the job whose end it was.

    Args:
        job: which has become final.
        because: how it ended, if that was with another job; else `job` itself is the reason.
    """
    reason = because or _reason(job)
    return [
        replace(reason, id=one.id, task=one.task, queue=one.queue, group_id=one.group_id)
        for one in later_jobs(job.task, job.message)
    ]


def errback_calls(job: FinalJob) -> list[NewJob]:
    """Jobs that call the errbacks of `job`, which has failed, on its own queue."""
    calls = _calls(job)
    return [new for call in calls if (new := _call(job, call)) is not None]


def later_jobs(task: str, message: Message) -> list[Later]:
    """Each job, once, that could only be enqueued after this message's job, in their order.

    These are the later steps of its chain, whatever nests in them, links that have an id, and what
    follows a chord, if this is the job that waits for the chord's header. A group, a chain and a
    chord have ids too, which are not those of jobs.
    """
    args, _, embed = _body(message)
    signatures = [*_reversed(embed.get("chain")), embed.get("callbacks")]
    if task == CHORD_UNLOCK:
        signatures.append(_chord_body(args))
    found: dict[str, Later] = {}
    for signature in signatures:
        for later in named_jobs(signature):
            found.setdefault(later.id, later)
    return list(found.values())


def named_jobs(signature: object) -> Iterator[Later]:
    """Each job of a signature, as Celery writes one into a message, that has an id already."""
    stack = [signature]
    while stack:
        item = stack.pop()
        if isinstance(item, (list, tuple)):
            stack += reversed(item)
        if not isinstance(item, Mapping):
            continue
        options, kwargs = _mapping(item.get("options")), _mapping(item.get("kwargs"))
        stack += [options.get("link"), *_list(options.get("chain"))]  # whose last step is its first
        kind = item.get("subtask_type")
        if kind in ("chain", "group"):
            stack.append(_list(kwargs.get("tasks")))
        elif kind == "chord":
            stack += [kwargs.get("body"), kwargs.get("header")]
        elif (later := _later(item, options)) is not None:
            yield later


def _later(signature: Mapping[str, Any], options: Mapping[str, Any]) -> Later | None:
    try:
        job_id = checked_id(options.get("task_id"))
    except InvalidRequest:
        return None
    queue = ""
    with suppress(InvalidRequest, UnicodeEncodeError):
        queue = checked_queue(options.get("queue"))
    return Later(
        job_id,
        _text(signature.get("task")) or "unknown",
        queue,
        _text(options.get("group_id")),
    )


def _reason(job: FinalJob) -> Ended:
    """A job that ends with `job`, but for what it is itself."""
    if job.state is State.FAILED:
        words = f"failed: {job.error or 'it said no more'}"
    elif job.state is State.CANCELLED:
        words = f"was cancelled: {job.error or 'it said no more'}"
    else:
        words = "ended with Ignore"
    failed = job.state is State.FAILED
    return Ended(
        id="",
        task="",
        state=State.FAILED if failed else State.CANCELLED,
        result=job.result if failed else None,
        result_type=job.result_type if failed else None,
        error=f"job {job.id}, which it was to follow, {words}"[:REASON_LIMIT],
        traceback=job.traceback if failed else None,
        parent_id=job.id,
        root_id=_text(job.root_id),
    )


def _calls(job: FinalJob) -> Iterator[dict[str, Any]]:
    """For each task that has failed with `job`: its request, and its errbacks."""
    args, kwargs, embed = _body(job.message)
    envelope = _object(job.message.envelope)
    if errbacks := _signatures(embed.get("errbacks")):
        headers = _mapping(envelope.get("headers"))
        properties = _mapping(envelope.get("properties"))
        more = {name: properties.get(name) for name in ("reply_to", "correlation_id")}
        request = {**headers, **more, **embed, "id": job.id, "task": job.task}
        yield {"request": {**request, "args": args, "kwargs": kwargs}, "errbacks": errbacks}
    if job.task != CHORD_UNLOCK:
        return
    body = _chord_body(args)
    of_all = _signatures(_mapping(body.get("options")).get("link_error"))
    is_group = body.get("subtask_type") == "group"
    tasks = _list(_mapping(body.get("kwargs")).get("tasks")) if is_group else [body]
    for task in filter(_mapping, tasks):
        options = _mapping(task.get("options"))
        errbacks = _signatures(options.get("link_error"))
        errbacks += [errback for errback in of_all if errback not in errbacks]
        if errbacks:
            request = {"id": options.get("task_id"), "root_id": options.get("root_id"), **task}
            yield {"request": request, "errbacks": errbacks}


def _call(job: FinalJob, call: dict[str, Any]) -> NewJob | None:
    """The job that makes a call; `None` if it cannot be written down."""
    call |= {"error": job.error, "traceback": job.traceback}
    with suppress(ValueError):  # its bytes are no text
        call["result"] = job.result.decode() if job.result is not None else None
    try:
        queue = checked_queue(job.queue)
        made = new_job(CALL_ERRBACKS, queue=queue, priority=job.priority)
        nothing = NOTHING_FOLLOWS.decode()
        body = f"[[{json.dumps(call)}], {{}}, {nothing}".encode()
    except (InvalidRequest, ValueError, TypeError, RecursionError):
        return None
    return replace(
        made,
        list=list_of(queue, job.priority),
        parent_id=job.id,
        root_id=_text(job.root_id) or job.id,
        message=Message(made.message.envelope, body),
    )


def _body(message: Message) -> tuple[list[Any], Mapping[str, Any], Mapping[str, Any]]:
    """The positional arguments, the named ones, and what else the body says."""
    try:
        args, kwargs, embed = json.loads(message.body)
    except (ValueError, TypeError, RecursionError):
        return [], {}, {}
    return _list(args), _mapping(kwargs), _mapping(embed)


def _object(text: str) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _chord_body(args: list[Any]) -> Mapping[str, Any]:
    return _mapping(args[1]) if len(args) > 1 else {}


def _signatures(value: object) -> list[Any]:
    items = [value] if isinstance(value, Mapping) else _list(value)
    return [item for item in items if isinstance(item, Mapping)]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _reversed(chain: object) -> list[Any]:
    """A message's chain, which begins with the last step, in the order of its steps."""
    return _list(chain)[::-1]


def _text(value: object) -> str | None:
    """`value` if Postgres can hold it as a name or an id."""
    with suppress(InvalidRequest):
        return checked_id(value)
    return None
