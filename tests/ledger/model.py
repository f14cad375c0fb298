"""What the protocol says of jobs, leases and doorbells, in plain Python: no SQL, no Redis.

`test_model.py` holds the real ledger and the real doorbells against it. Nothing here is taken from
the code that it judges but the shapes of its messages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from worker.jobs.job import Fence, Finish, NewJob
from worker.jobs.queues import list_of
from worker.jobs.states import State
from worker.ledger.interrupted import MOST as INTERRUPTIONS

LISTS = [list_of("celery", 0), list_of("celery", 9)]
#: The suspicion at which a job runs truly alone.
ALONE = 2


class Lives(Enum):
    """How a lease stands."""

    RENEWED = auto()
    FALTERING = auto()
    EXPIRED = auto()
    GONE = auto()


@dataclass
class Lease:
    """What the model knows of a lease."""

    isolated: bool = False
    pod: str | None = None
    lives: Lives = Lives.RENEWED

    @property
    def grants(self) -> bool:
        return self.lives in (Lives.RENEWED, Lives.FALTERING)


@dataclass
class Known:
    """What the model knows of a job."""

    state: State
    body: bytes | None = None
    list: str = ""
    attempt: int = 0
    lost: int = 0
    #: 0, 1 for a suspect, 2 for one that must run truly alone.
    suspicion: int = 0
    poison: bool = False
    #: Whose attempt the last one was, as long as a finish may be repeated.
    lease: str | None = None
    result: bytes | None = None
    #: Whether it has an `expires`, and whether that is past.
    expires: bool = False
    late: bool = False
    #: Whether its next message is still to come, from the canvas that replaced it.
    awaits: bool = False
    #: The number of its dispatch; None while it has no number or a new one.
    seq: int | None = None
    #: How each attempt ended that left a row.
    ended: dict[int, str] = field(default_factory=dict)
    #: Attempts that leave none: those postponed, and the success.
    unnoted: set[int] = field(default_factory=set)
    #: Noted attempts in a row, up to the last one, that a worker's shutdown interrupted.
    interrupted: int = 0

    @property
    def never_ran(self) -> bool:
        return self.state in (State.FAILED, State.CANCELLED) and not self.list and self.attempt == 0

    def queue(self) -> None:
        self.wait(is_due=True)

    def wait(self, is_due: bool) -> None:
        self.state, self.seq = State.QUEUED if is_due else State.SCHEDULED, None


class Model:
    """Jobs, leases and lists, and what each statement makes of them."""

    def __init__(self) -> None:
        self.limit = 1
        self.jobs: dict[str, Known] = {}
        self.keys: dict[str, str] = {}
        self.leases: dict[str, Lease] = {}
        #: What stands in each list, next to be popped first.
        self.lists: dict[str, list[tuple[str, int]]] = {name: [] for name in LISTS}

    def ids(self, *states: State) -> set[str]:
        return {job_id for job_id, job in self.jobs.items() if job.state in states}

    def held_by(self, lease: str) -> set[str]:
        return {one for one in self.ids(State.RUNNING) if self.jobs[one].lease == lease}

    def insert(self, new: NewJob) -> tuple[str, bool] | None:
        """The id that answers, and whether it was created; None for a conflict."""
        by_key = self.keys.get(new.key) if new.key else None
        if by_key is None and new.id not in self.jobs:
            self.jobs[new.id] = job = Known(State.SCHEDULED, new.message.body, new.list)
            job.expires = new.expires is not None
            job.wait(new.is_due)
            if new.key:
                self.keys[new.key] = new.id
            return new.id, True
        found = by_key or new.id
        job = self.jobs[found]
        if found == new.id and (job.awaits or job.never_ran):
            job.wait(new.is_due)
            job.body, job.list, job.awaits, job.poison = new.message.body, new.list, False, False
            job.expires = job.expires or new.expires is not None
            job.late = job.late and new.expires is None
            return found, True
        return (found, False) if job.body == new.message.body else None

    def claim(self, lease: str, ids: Iterable[str]) -> set[Fence]:
        """The fences that `lease` has of `ids`, granted now or before."""
        wanted = set(ids) & self.jobs.keys()
        for job_id in wanted:
            job = self.jobs[job_id]
            if job.state is State.QUEUED and not job.late and not job.suspicion:
                self.grant(lease, job_id)
        return {Fence(one, self.jobs[one].attempt, lease) for one in wanted & self.held_by(lease)}

    def suspects(self) -> list[str]:
        """Suspects that wait, the longest waiting first."""
        waiting = [
            (job.seq or 0, job_id)
            for job_id, job in self.jobs.items()
            if job.state is State.QUEUED and job.suspicion and not job.late
        ]
        return [job_id for _, job_id in sorted(waiting)]

    def claim_suspects(self, lease: str, most: int, idle: bool) -> set[Fence]:
        """The oldest suspect decides; what must run alone bears nothing beside it."""
        waiting = self.suspects()
        beside = max((self.jobs[one].suspicion for one in self.held_by(lease)), default=0)
        level = self.jobs[waiting[0]].suspicion if waiting else 0
        if level == ALONE:
            chosen = waiting[:1] if idle and not self.held_by(lease) else []
        else:
            same = [one for one in waiting if self.jobs[one].suspicion == level]
            chosen = same[:most] if beside < ALONE else []
        if not self.leases[lease].grants:
            return set()
        for one in chosen:
            self.grant(lease, one)
        return {Fence(one, self.jobs[one].attempt, lease) for one in chosen}

    def grant(self, lease: str, job_id: str) -> None:
        if self.leases[lease].grants:
            job = self.jobs[job_id]
            job.state, job.lease, job.attempt = State.RUNNING, lease, job.attempt + 1

    def finish(self, ends: Iterable[Finish]) -> tuple[set[str], set[str]]:
        """Ids that are granted, now or before, and ids for whom a doorbell is to be pushed."""
        granted, rung = set(), set()
        for end in ends:
            job = self.jobs[end.fence.id]
            mine = (job.attempt, job.lease) == (end.fence.attempt, end.fence.lease)
            if mine and job.state is State.RUNNING:
                granted.add(end.fence.id)
                self._end(job, end)
                if end.state is State.QUEUED and not job.suspicion:
                    rung.add(end.fence.id)
                for new in end.outbox:
                    answer = self.insert(new)
                    if answer == (new.id, True) and self.jobs[new.id].state is State.QUEUED:
                        rung.add(new.id)
            elif mine and job.state is end.state:
                granted.add(end.fence.id)
        return granted, rung

    def _end(self, job: Known, end: Finish) -> None:
        kept = end.outcome in ("lost", "released", "postponed")
        job.lost = job.lost + (end.outcome == "lost") if kept else 0
        job.suspicion = job.suspicion if kept else 0
        job.state, job.result, job.seq = end.state, end.result, None
        job.awaits = end.delay == math.inf
        self._note(job, end.outcome)

    def _note(self, job: Known, outcome: str) -> None:
        if outcome in ("succeeded", "postponed"):
            job.unnoted.add(job.attempt)
        else:
            job.ended[job.attempt] = outcome
            job.interrupted = 0

    def rescue(self, accuse: bool) -> tuple[int, set[str], set[str]]:
        """How many leases were ended, ids that are queued, and ids that are poison."""
        ended = [one for one, lease in self.leases.items() if self._is_over(one, lease)]
        for one in ended:
            self.leases[one].lives = Lives.GONE
        accused, suspicion = self._accused(ended)
        if not accuse or any(one.lives is Lives.FALTERING for one in self.leases.values()):
            accused = None
        orphans = {one for lease in ended for one in self.held_by(lease)}
        together = Counter(self.jobs[one].lease for one in orphans)
        for one in orphans:
            job = self.jobs[one]
            alone = together[job.lease] == 1 and job.lease == accused
            self._lose(job, guilty=alone and job.suspicion >= suspicion)
        for one in orphans:
            self.jobs[one].lease = None
        poison = {one for one in orphans if self.jobs[one].state is State.FAILED}
        return len(ended), orphans - poison, poison

    def _is_over(self, lease_id: str, lease: Lease) -> bool:
        """A lease waits for the end of its pod's other one, if that is near."""
        return lease.lives is Lives.EXPIRED and not any(
            other.pod == lease.pod and other.lives is Lives.FALTERING
            for other_id, other in self.leases.items()
            if other_id != lease_id and lease.pod is not None
        )

    def _accused(self, ended: list[str]) -> tuple[str | None, int]:
        """Whose death says something of what it ran, and of how suspect a job."""
        pods = {self.leases[one].pod for one in ended}
        isolated = [one for one in ended if self.leases[one].isolated]
        if len(ended) == 1:
            return ended[0], 0
        if len(ended) == 2 and len(pods) == 1 and None not in pods and len(isolated) == 1:
            return isolated[0], ALONE
        return None, 0

    def _lose(self, job: Known, guilty: bool) -> None:
        self._note(job, "lost")
        job.lost += guilty
        job.suspicion = max(job.suspicion, ALONE if self.leases[job.lease or ""].isolated else 1)
        job.queue()
        if job.lost >= self.limit:
            job.state, job.suspicion, job.poison = State.FAILED, 0, True

    def close(self, lease: str) -> set[str]:
        """The ids that are given back."""
        self.leases[lease].lives = Lives.GONE
        given_back = self.held_by(lease)
        for one in given_back:
            job = self.jobs[one]
            earlier = job.interrupted
            self._note(job, "released")
            job.interrupted = earlier + 1
            if job.interrupted >= INTERRUPTIONS:
                job.suspicion = max(job.suspicion, 1)
            job.queue()
        return given_back

    def cancel(self, job_id: str, running: bool) -> bool:
        """Whether it is cancelled now, or was before."""
        job = self.jobs.get(job_id)
        if job is None:
            return False
        if job.state is State.RUNNING and running:
            self._note(job, "cancelled")
        elif job.state not in (State.SCHEDULED, State.QUEUED):
            return job.state is State.CANCELLED
        job.state, job.lease, job.awaits, job.poison = State.CANCELLED, None, False, False
        return True

    def replay(self, job_id: str) -> bool:
        job = self.jobs.get(job_id)
        if job is None or job.state not in (State.FAILED, State.CANCELLED) or not job.list:
            return False
        job.queue()
        job.lost, job.suspicion, job.poison, job.lease = 0, 0, False, None
        job.result, job.expires, job.late, job.awaits = None, False, False, False
        return True

    def end_unrun(self, job_id: str) -> None:
        job = self.jobs.setdefault(job_id, Known(State.FAILED))
        if job.awaits:  # its message may still come
            job.state = State.FAILED

    def expire_late(self) -> int:
        late = {one for one in self.ids(State.SCHEDULED, State.QUEUED) if self.jobs[one].late}
        for one in late:
            self.cancel(one, False)
        return len(late)

    def unrung(self, name: str) -> set[str]:
        """Waiting jobs of a list whose doorbell cannot be in it any more."""
        front = self.lists[name][0][1] if self.lists[name] else math.inf
        return {
            one
            for one in self.ids(State.QUEUED)
            if self.jobs[one].list == name
            and not self.jobs[one].suspicion
            and (self.jobs[one].seq or 0) < front
        }
