"""Celery task messages (protocol 2), built without Celery.

Source: "Message Protocol", version 2, of Celery's documentation; the fields are those that
`celery.app.amqp.AMQP.as_task_v2` of Celery 5.7 sends, without those that say nothing.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from worker.errors import InvalidRequest, NotJSON, TooLarge
from worker.jobs.ids import checked_id, new_id, shown
from worker.jobs.job import Message, NewJob
from worker.jobs.queues import checked_queue, list_of

#: Longest `argsrepr` and `kwargsrepr`, in characters: what logs and Flower show of the arguments.
REPR_LIMIT = 1024
MAX_KEY_BYTES = 255
#: How deep a payload may nest; CPython's JSON parser recurses and fails near 1,000.
MAX_DEPTH = 100

#: The envelope, with a NUL for each value that differs from job to job: writing it whole takes
#: several times as long.
#: What Celery takes for said anyway is left out (no eta, no group, no limits, no stamps): a row is
#: written three times in a job's life, with its envelope. So a task's own `ignore_result` counts.
_ENVELOPE = (
    '{"headers": {"lang": "py", "task": %s, "id": \0, "root_id": \0, "argsrepr": \0,'
    ' "kwargsrepr": \0, "origin": %s}, "properties": {"correlation_id": \0, "priority": %d},'
    ' "content-type": "application/json", "content-encoding": "utf-8"}'
)
_as_json = encode_basestring_ascii
_encode = json.JSONEncoder().encode  # as `json.dumps`, which looks at its eight options first
#: What a body says of callbacks and a chain, of which the jobs made here have none.
_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


def new_job(
    task: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    queue: str = "celery",
    priority: int = 0,
    delay: float | None = None,
    expires: float | None = None,
    key: str | None = None,
    job_id: str | None = None,
    max_bytes: int = 1 << 20,
) -> NewJob:
    """A job ready to be enqueued.

    Args:
        task: the Celery task name.
        args, kwargs: JSON-able arguments.
        queue: the queue's name, 1 to 255 bytes.
        priority: 0 (first) to 9.
        delay: seconds until it may run.
        expires: seconds after which it will not be started.
        key: idempotency key, 1 to 255 bytes.
        job_id: default a new UUIDv7.
        max_bytes: the largest body allowed.

    Raises:
        InvalidRequest: a name, number or key that cannot be.
        NotJSON: arguments that JSON cannot hold.
        TooLarge: a body over `max_bytes`.
    """
    chosen = new_id() if job_id is None else checked_id(job_id)
    pid = os.getpid()
    if type(task) is type(queue) is str and type(priority) is int:
        redis_list, frame = _list_of(task, queue, priority), _frame(task, priority, pid)
    else:  # which cannot be, or is unusual: a cache would not take all of it, or mistake it
        redis_list = _list_of.__wrapped__(task, queue, priority)
        frame = _frame.__wrapped__(task, priority, pid)
    if key is not None:
        _check_text("idempotency key", key, MAX_KEY_BYTES)
    _check_arguments(args, kwargs)
    body = encoded_body(list(args), dict(kwargs or {}), max_bytes)
    return NewJob(
        id=chosen,
        task=task,
        queue=queue,
        list=redis_list,
        priority=priority,
        delay=_seconds("delay", delay),
        expires=_seconds("expires", expires),
        key=key,
        root_id=chosen,
        message=Message(_envelope(frame, chosen, args, kwargs or {}), body),
    )


def encoded_body(args: list[Any], kwargs: dict[str, Any], max_bytes: int) -> bytes:
    """The body `[args, kwargs, embed]` as JSON.

    Raises:
        NotJSON: JSON cannot hold it, or it nests deeper than `MAX_DEPTH`.
        TooLarge: it has more than `max_bytes` bytes.
    """
    is_flat = _FLAT.issuperset(map(type, args)) and _FLAT.issuperset(map(type, kwargs.values()))
    if not is_flat and depth_of([args, kwargs]) > MAX_DEPTH:
        raise NotJSON(f"The arguments nest deeper than {MAX_DEPTH} levels; flatten them.")
    try:
        body = f"{_encode([args, kwargs])[:-1]}, {_EMBED}]".encode()
    except (TypeError, ValueError) as exc:
        raise NotJSON(f"The arguments cannot be written as JSON: {exc}.") from None
    if len(body) > max_bytes:
        raise TooLarge(
            f"The payload has {len(body)} bytes, the limit is {max_bytes}; store large data"
            " elsewhere and pass a reference, or raise WORKER_PAYLOAD_MAX_BYTES."
        )
    return body


def depth_of(value: Any) -> int:
    """How deep lists and objects nest in `value`, without recursion."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH + 1:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, (list, tuple)):
                below.extend(item)
            elif isinstance(item, (dict, Mapping)):
                below.extend(item.values())
        level = [item for item in below if type(item) not in _FLAT and _nests(item)]
    return depth


#: What nests nothing, and most values are: to ask whether it is a Mapping takes far longer.
_FLAT = frozenset({str, int, float, bool, type(None)})


def _nests(value: object) -> bool:
    return isinstance(value, (list, tuple, dict, Mapping))


def _envelope(
    frame: tuple[str, ...], job_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    start, root, argsrepr, kwargsrepr, origin, end = frame
    as_id = _as_json(job_id)
    as_args = _as_json(repr(tuple(args))[:REPR_LIMIT])
    as_kwargs = _as_json(repr(dict(kwargs))[:REPR_LIMIT])
    return (
        f"{start}{as_id}{root}{as_id}{argsrepr}{as_args}{kwargsrepr}{as_kwargs}{origin}{as_id}{end}"
    )


@functools.lru_cache(maxsize=1024)
def _frame(task: str, priority: int, pid: int) -> tuple[str, ...]:
    """What stands between the values that differ from job to job."""
    origin = f"{pid}@{socket.gethostname()}"
    frame = _ENVELOPE % (_as_json(task), _as_json(origin), priority)  # JSON writes no bare NUL
    return tuple(frame.split("\0"))


@functools.lru_cache(maxsize=1024)
def _list_of(task: str, queue: str, priority: int) -> str:
    """The Redis list, once the three are checked."""
    _check_text("task name", task)
    checked_queue(queue)
    _check_priority(priority)
    return list_of(queue, priority)


def _check_priority(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise InvalidRequest(
            f"A priority is a whole number from 0 (first) to 9, not {shown(value)}."
        )


def _check_arguments(args: object, kwargs: object) -> None:
    if not isinstance(args, (list, tuple)):
        raise InvalidRequest(f"args must be a list, not {type(args).__name__}.")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidRequest(f"kwargs must be an object, not {type(kwargs).__name__}.")


def _check_text(what: str, value: object, max_bytes: int = 255) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidRequest(
            f"The {what} must be a non-empty text without NUL, not {shown(value)}."
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"The {what} must be valid Unicode.") from None
    if size > max_bytes:
        raise InvalidRequest(f"The {what} may have at most {max_bytes} bytes; this one has {size}.")


def _seconds(what: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        raise InvalidRequest(f"{what} must be seconds from 0 to below 1e9, not {shown(value)}.")
    return float(value)
