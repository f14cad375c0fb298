"""A job as it is enqueued, as it is claimed, as it is finished, and as it is read."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from datetime import datetime

from worker.jobs.states import State

_SIZE = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Message:
    """A Celery task message (protocol 2), whole, so that it can be delivered from the row alone.

    Attributes:
        envelope: JSON text of `{"headers", "properties", "content-type", "content-encoding"}`.
        body: the serialized `[args, kwargs, embed]`, verbatim.
    """

    envelope: str
    body: bytes


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be enqueued.

    Attributes:
        id: 1 to 255 bytes, see `worker.jobs.ids`.
        task: the Celery task name.
        queue: the queue's name.
        list: the Redis list that its doorbell goes to (queue and priority).
        priority: 0 to 9.
        message: what the worker will be given.
        delay: seconds from now until it may run, `None` or not above 0 for at once.
        expires: seconds from now after which it will not be started, `None` for never.
        key: the idempotency key, `None` for none.
        parent_id, root_id, group_id: correlation ids.
    """

    id: str
    task: str
    queue: str
    list: str
    message: Message
    priority: int = 0
    delay: float | None = None
    expires: float | None = None
    key: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    group_id: str | None = None

    @property
    def is_due(self) -> bool:
        """Whether it may run at once."""
        return self.delay is None or self.delay <= 0

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over what makes two enqueues with one id or key the same request."""
        task, queue, body = self.task.encode(), self.queue.encode(), self.message.body
        size = _SIZE.pack
        parts = (size(len(task)), task, size(len(queue)), queue, size(len(body)), body)
        return hashlib.sha256(b"".join(parts)).digest()


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell to push: job `id` of `list` is ready; `seq` is its dispatch sequence number."""

    id: str
    list: str
    seq: int


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The ledger's answer to an enqueue.

    Attributes:
        id: the job's id; with an idempotency key it may be that of an earlier enqueue.
        created: False when an identical job was there already.
        ring: the doorbell to push now, `None` when the job is not due or was there before.
    """

    id: str
    created: bool
    ring: Ring | None


@dataclass(frozen=True, slots=True)
class Fence:
    """The fencing token of one attempt: only who holds it may write the job's end."""

    id: str
    attempt: int
    lease: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A job granted to this worker's lease.

    Attributes:
        fence: under which it may be finished.
        task, queue, message: what to run.
        lost: how many of its attempts were lost alone until now.
        suspicion: 0 for none, 1 for a suspect, 2 for one that must run alone.
        redelivered: whether its last attempt was lost or given back, as a broker would say.
    """

    fence: Fence
    task: str
    queue: str
    message: Message
    lost: int = 0
    suspicion: int = 0
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that ends unrun: a later step of a chain that failed, never enqueued or awaited.

    Attributes:
        queue: where it was to run, empty if nobody knows.
        parent_id: the job with whose end it ends, if it is known.
    """

    id: str
    task: str
    state: State
    result: bytes | None = None
    result_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    group_id: str | None = None
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """How one attempt ended, and what becomes of the job.

    Attributes:
        fence: who may write it.
        state: the job's next state.
        outcome: the word kept in the attempt's row: succeeded, ignored, failed, retried, replaced,
            released, lost, cancelled; succeeded and postponed leave no row.
        result: the encoded return value, or the encoded exception.
        result_type: the content type of `result`.
        error: one line.
        traceback: text.
        children: JSON text of the ids of what the task enqueued, for `AsyncResult.children`.
        delay: seconds until it may run again, when `state` is scheduled.
        replacement: the job as it shall run next, when a retry changed it.
        outbox: jobs that come to be only if this finish is granted: links, the next of a chain. A
            success has what follows it in here. What follows any other final state the ledger finds
            in the job's message: see `worker.ledger.continuations`.
        ended: jobs that the task's own code ended, which end only if this finish is granted.
        errbacks_done: the attempt has called its errbacks itself, or shall call none; else the
            ledger enqueues a job that calls them, if `state` is failed.
    """

    fence: Fence
    state: State
    outcome: str
    result: bytes | None = None
    result_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    children: str | None = None
    delay: float | None = None
    replacement: NewJob | None = None
    outbox: tuple[NewJob, ...] = ()
    ended: tuple[Ended, ...] = ()
    errbacks_done: bool = False

    @property
    def is_return(self) -> bool:
        """Whether the task returned, so that all that follows is in `outbox`."""
        return self.state is State.SUCCEEDED and self.outcome == "succeeded"

    @property
    def is_followed(self) -> bool:
        """Whether something follows this end, or may, as the ledger will find."""
        return bool(self.outbox or self.ended) or (self.state.is_final and not self.is_return)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that did not simply succeed."""

    number: int
    outcome: str
    worker: str | None
    started_at: datetime | None
    ended_at: datetime
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the ledger knows it now. Times are the database's, with time zone.

    Attributes:
        attempt: how often it was started.
        attempts: how each attempt ended that did not simply succeed; see `history` for all.
    """

    id: str
    task: str
    queue: str
    priority: int
    state: State
    attempt: int
    lost: int
    suspect: bool
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    worker: str | None
    key: str | None
    parent_id: str | None
    root_id: str | None
    group_id: str | None
    error: str | None
    traceback: str | None
    message: Message
    result: bytes | None
    result_type: str | None
    children: str | None
    progress: bytes | None
    progress_state: str | None
    attempts: tuple[Attempt, ...] = field(default=())

    @property
    def history(self) -> tuple[Attempt, ...]:
        """Every attempt that has ended, the one that succeeded too, which `attempts` leaves out."""
        is_told = any(attempt.number == self.attempt for attempt in self.attempts)
        if self.state is not State.SUCCEEDED or self.finished_at is None or is_told:
            return self.attempts
        last = Attempt(
            self.attempt, "succeeded", self.worker, self.started_at, self.finished_at, None, None
        )
        return (*self.attempts, last)
