"""The answer to "where is my job?": as JSON for programs, in words for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from worker.jobs.job import Attempt, Job
from worker.jobs.states import State

#: Characters of the arguments or the result, and lines of a traceback, that people are shown.
_CHARACTERS: Final = 2000
_TRACEBACK_LINES: Final = 30
#: What a terminal may obey, and what UTF-8 cannot say.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PLAIN: Final = (
    "id", "task", "queue", "priority", "state", "attempt", "lost", "suspect",
    "created_at", "run_at", "started_at", "finished_at", "expires_at",
    "worker", "key", "parent_id", "root_id", "group_id", "error", "traceback",
)  # fmt: skip


def as_json_line(job: Job) -> str:
    """The whole job as one line of JSON; times are ISO 8601 in UTC."""
    args, kwargs = arguments_of(job)
    value = {name: getattr(job, name) for name in _PLAIN}
    value |= {"args": args, "kwargs": kwargs, "result": result_of(job)}
    value["attempts"] = [
        {name: getattr(attempt, name) for name in Attempt.__slots__} for attempt in job.attempts
    ]
    return json.dumps(value, default=_iso)


def arguments_of(job: Job) -> tuple[Any, Any]:
    """The positional and the keyword arguments; as the message describes them when not JSON."""
    decoded = _decoded(job.message.body)
    if isinstance(decoded, list) and len(decoded) >= 2:
        return decoded[0], decoded[1]
    headers = json.loads(job.message.envelope).get("headers", {})
    return headers.get("argsrepr"), headers.get("kwargsrepr")


def result_of(job: Job) -> Any:
    """What the job returned, or how its exception is recorded; text when it is not JSON."""
    if job.result is None:
        return None
    if job.result_type != "application/json":
        return job.result.decode(errors="replace")
    return _decoded(job.result)


def in_words(job: Job, *, served: bool) -> Iterator[str]:
    """The job for people, line by line.

    Args:
        job: with its attempts.
        served: whether some worker has ever consumed its queue.
    """
    args, kwargs = arguments_of(job)
    yield _row("Job", job.id)
    yield _row("State", _state(job))
    yield _row("Task", job.task)
    if job.queue:
        yield _row("Queue", f"{job.queue}, priority {job.priority}")
    yield _row("Attempts", _attempts(job))
    for name in ("created_at", "run_at", "started_at", "finished_at", "expires_at"):
        if (time := getattr(job, name)) is not None:
            yield _row(name.removesuffix("_at").replace("run", "runs").capitalize(), _time(time))
    for name in ("worker", "key"):
        if (value := getattr(job, name)) is not None:
            yield _row(name.capitalize(), value)
    yield _row("Arguments", f"{_shown(args)} {_shown(kwargs)}")
    if job.state is State.SUCCEEDED:
        yield _row("Result", _shown(result_of(job)))
    if job.error:
        yield _row("Error", job.error)
    for attempt in job.history:
        yield _row(f"Attempt {attempt.number}", _attempt(attempt))
    if job.traceback:
        yield "\n".join(printable(job.traceback).rstrip().splitlines()[-_TRACEBACK_LINES:])
    yield _row("Next", _next(job, served))


def printable(text: str) -> str:
    """`text` without what a terminal would obey: a job's words are its producer's."""
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _state(job: Job) -> str:
    words = {
        State.SCHEDULED: "it runs later" if job.run_at else "it waits for other jobs",
        State.QUEUED: "ready, waiting for a worker",
        State.RUNNING: f"{job.worker or 'a worker'} has it",
        State.SUCCEEDED: "its result is recorded",
        State.FAILED: "it is a dead letter",
        State.CANCELLED: "it will not run",
    }[job.state]
    if job.suspect and not job.state.is_final:
        words += "; suspected of killing its process, it runs in one of its own"
    return f"{job.state}: {words}"


def _attempts(job: Job) -> str:
    return f"{job.attempt}, {job.lost} lost with their process" if job.lost else str(job.attempt)


def _next(job: Job, served: bool) -> str:
    if job.state.is_final and not job.message.body:
        return _next_of_the_unrun(job)
    start = f"no worker has ever consumed this queue; `worker run --queues {job.queue}` does"
    return {
        State.SCHEDULED: f"the keeper queues it when it is due; `worker job cancel {job.id}`"
        " stops it.",
        State.QUEUED: "a free worker of its queue takes it." if served else f"{start}.",
        State.RUNNING: "its worker records the end; if that dies, the job is rescued when the"
        " lease has expired.",
        State.SUCCEEDED: "nothing; it is kept for WORKER_KEEP_SUCCEEDED_DAYS.",
        State.FAILED: f"mend the cause, then `worker job replay {job.id}`.",
        State.CANCELLED: f"nothing, or `worker job replay {job.id}`.",
    }[job.state]


def _next_of_the_unrun(job: Job) -> str:
    """Of a job that ended before it was enqueued: its message was in the one before it."""
    if job.state is State.SUCCEEDED or job.parent_id is None:
        return "nothing: it was never enqueued; its chain or chord can be started again."
    return (
        f"nothing: it was never enqueued; see job {job.parent_id}, which it was to follow, and"
        " whose success brings it."
    )


def _attempt(attempt: Attempt) -> str:
    began = f"{_time(attempt.started_at)} to " if attempt.started_at else ""
    where = f" on {attempt.worker}" if attempt.worker else ""
    error = f": {attempt.error}" if attempt.error else ""
    return f"{attempt.outcome}{where}, {began}{_time(attempt.ended_at)}{error}"


def _row(name: str, value: str) -> str:
    return f"{name:<10} {printable(value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    rest = len(text) - _CHARACTERS
    return text if rest <= 0 else f"{text[:_CHARACTERS]} … {rest} more characters, see --json"


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(time: object) -> str:
    assert isinstance(time, datetime)
    return time.astimezone(UTC).isoformat()


def _decoded(data: bytes) -> Any:
    """JSON as Python; what is none, such as a NaN or a foreign body, as text."""
    try:
        return json.loads(data, parse_constant=str)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")
