"""A chaos run on a stage: its lines are given to the players, its moves are the real ledger's.

For the tests of the checker. Every session has the name that a real one has.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from tests.chaos import audit
from tests.chaos.history import Journal
from worker.jobs.job import Ended, Fence, Finish
from worker.jobs.message import new_job
from worker.jobs.states import State
from worker.ledger.change import cancel
from worker.ledger.claim import claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.ended import insert_ended
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish
from worker.ledger.lease import close_lease, open_lease
from worker.ledger.read import read
from worker.ledger.rescue import rescue

CLIENT, KEEPER = "celery-ledger client", "celery-ledger keeper"


def success(fence: Fence, result: bytes | None) -> Finish:
    """The attempt returned."""
    return Finish(fence, State.SUCCEEDED, "succeeded", result, "application/json")


class Stage:
    """One run: a folder of histories, an audited database, and who writes to them.

    Args:
        folder: of the history files.
        url: of a migrated, empty database.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.leases: dict[str, str] = {}
        self.children = 1
        self._ledgers: dict[str, Ledger] = {}
        audit.install(url)
        self.producer = Journal(folder / "producer-p1.jsonl")
        self.nemesis = Journal(folder / "nemesis.jsonl")
        self.nemesis.note("clock", wall=time.time())

    def close(self) -> None:
        """Close every session."""
        for ledger in self._ledgers.values():
            ledger.close()

    def ledger(self, name: str) -> Ledger:
        """The session of this name."""
        if name not in self._ledgers:
            url = self.url.replace("postgresql://", "postgresql+psycopg2://")
            self._ledgers[name] = Ledger(url, name=name, connections=1)
        return self._ledgers[name]

    def sql(self, by: str, statement: str, **parameters: Any) -> None:
        """A statement of a session that knows no fence."""
        with psycopg2.connect(audit.dsn(self.url), application_name=by) as connection:
            connection.cursor().execute(statement, parameters)
        connection.close()

    # --- producers

    def accepted(self, kind: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
        """Enqueue a job and say so; its id."""
        job = self.enqueued(kind, **more)
        self.producer.note("accepted", job=job, kind=kind, key=more.get("key"), arguments=arguments)
        return job

    def enqueued(self, kind: str, **more: Any) -> str:
        """Enqueue a job, and say nothing; its id."""
        task = more.pop("task", f"chaos.{kind}")
        new = new_job(task, (), **{"job_id": uuid.uuid4().hex, **more})
        enqueue(self.ledger(CLIENT), [new])
        return new.id

    def follower(self, kind: str, *parents: str, upon: str = "success") -> str:
        """A job that follows others, and is enqueued; its id."""
        job = self.enqueued(kind)
        self.follows(job, kind, *parents, upon=upon)
        return job

    def follows(
        self, job: str, kind: str, *parents: str, upon: str = "success", is_given: bool = True
    ) -> None:
        """Say that a job is to come after others; a link is given to nobody."""
        told = {"job": job, "kind": kind, "key": None, "after": list(parents), "upon": upon}
        if is_given:
            self.producer.note("accepted", **told)
        else:
            self.producer.note("unsure", error="comes upon another's end", **told)

    def ended(self, job: str, **more: Any) -> None:
        """What was to follow something will never come."""
        with self.ledger("w1").transaction() as connection:
            insert_ended(connection, [Ended(job, "chaos.noop", State.FAILED, **more)])

    def expiring(self, seconds: float) -> str:
        """Enqueue a job that expires, and say so; its id."""
        job = self.enqueued("expiring")
        told = {"job": job, "kind": "expiring", "key": None, "expires": seconds}
        self.producer.note("accepted", **told)
        return job

    def age(self, job: str, seconds: float) -> None:
        """Let a job have been enqueued so many seconds ago."""
        self.sql(
            CLIENT,
            "UPDATE audit_moves SET at = at - %(seconds)s * interval '1 second'"
            " WHERE job = %(job)s",
            job=job,
            seconds=seconds,
        )

    def replaced(self, worker: str, job: str) -> None:
        """Claim, execute, be replaced by a canvas."""
        fence, _ = self.run(worker, job, "replacing", "replaced")
        self.finish(worker, Finish(fence, State.SCHEDULED, "replaced", delay=math.inf))

    def cancelled(self, job: str) -> None:
        """Cancel a job, by a client."""
        cancel(self.ledger(CLIENT), job, "asked")
        self.producer.note("cancelled", job=job)

    def read(self, job: str) -> None:
        """Read a job back, by a client."""
        found = read(self.ledger(CLIENT), job)
        assert found is not None
        digest = None if found.result is None else hashlib.sha256(found.result).hexdigest()
        self.producer.note("read", job=job, state=found.state.value, digest=digest)

    @contextmanager
    def unaudited(self) -> Iterator[None]:
        """What moves meanwhile leaves no trace in the audit."""
        self.sql(KEEPER, "ALTER TABLE ledger.jobs DISABLE TRIGGER USER")
        yield
        self.sql(KEEPER, "ALTER TABLE ledger.jobs ENABLE TRIGGER USER")

    # --- workers

    def lease(self, worker: str, *, isolated: bool = False) -> str:
        """The worker's lease, opened when it has none; valid for the whole test."""
        if worker not in self.leases:
            renewer = self.ledger(f"{worker} lease")
            self.leases[worker] = open_lease(renewer, worker, ["celery"], 600, isolated=isolated)
        return self.leases[worker]

    def claim(self, worker: str, job: str) -> Fence:
        """Claim the job for the worker."""
        (one,) = claim(self.ledger(worker), self.lease(worker), [job])
        return one.fence

    def claim_alone(self, worker: str) -> Fence:
        """Claim the suspect that waits, for a process of its own."""
        lease = self.lease(worker, isolated=True)
        (one,) = claim_suspects(self.ledger(worker), lease, ["celery"], 1, idle=True)
        return one.fence

    def start(
        self,
        worker: str,
        fence: Fence,
        kind: str,
        pid: int = 1,
        t: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The task's code begins, in the worker or a child; what its end has to say too."""
        said = {
            "job": fence.id, "attempt": fence.attempt, "lease": fence.lease,
            "run": uuid.uuid4().hex, "kind": kind, **more,
        }  # fmt: skip
        self.execution(worker, pid).note("start", **said, **({} if t is None else {"t": t}))
        return said

    def end(self, worker: str, said: dict[str, Any], how: str = "returned", **more: Any) -> bytes:
        """The task's code ends; its encoded result."""
        self.execution(worker).note("end", how=how, **{**said, **more})
        return json.dumps({"run": said["run"], "attempt": said["attempt"]}).encode()

    def execution(self, worker: str, pid: int = 1) -> Journal:
        """The journal of the worker's process, or of a child's."""
        return Journal(self.folder / f"execution-{worker}-{pid}.jsonl")

    def run(self, worker: str, job: str, kind: str, how: str = "returned") -> tuple[Fence, bytes]:
        """Claim and execute."""
        fence = self.claim(worker, job)
        return fence, self.end(worker, self.start(worker, fence, kind), how)

    def succeed(self, worker: str, job: str, kind: str) -> Fence:
        """Claim, execute, finish."""
        fence, result = self.run(worker, job, kind)
        self.finish(worker, success(fence, None if kind == "ignoring" else result))
        return fence

    def rerun(self, worker: str, kind: str) -> None:
        """Claim the suspect that waits, execute, finish."""
        fence = self.claim_alone(worker)
        self.finish(worker, success(fence, self.end(worker, self.start(worker, fence, kind))))

    def retry(self, worker: str, job: str, kind: str) -> None:
        """Claim, execute, ask for another attempt; the keeper queues it."""
        fence, _ = self.run(worker, job, kind, "retried")
        self.retry_recorded(worker, fence)

    def retry_recorded(self, worker: str, fence: Fence) -> None:
        """Write that an attempt asked for another one; the keeper queues it."""
        self.finish(worker, Finish(fence, State.SCHEDULED, "retried", error="not yet", delay=0))
        assert dispatch_due(self.ledger(KEEPER), None)

    def fail(
        self,
        worker: str,
        job: str,
        kind: str,
        error: str | None = "ValueError: no",
        traceback: str | None = "Traceback",
    ) -> None:
        """Claim, execute, raise."""
        fence, _ = self.run(worker, job, kind, "raised")
        end = Finish(fence, State.FAILED, "failed", error=error, traceback=traceback)
        self.finish(worker, end)

    def lose_child(self, worker: str, job: str, kind: str, *, poison: bool = False) -> None:
        """Claim, start, and die in a child; the parent sees it, and may condemn the job."""
        fence = self.claim(worker, job)
        self.children += 1
        self.start(worker, fence, kind, pid=self.children)
        self.nemesis.note("death", file=f"execution-{worker}-{self.children}.jsonl", pid=0)
        state = State.FAILED if poison else State.QUEUED
        error = "poison: 3 attempts were lost with their process" if poison else "died"
        self.finish(worker, Finish(fence, state, "lost", error=error))

    def finish(self, worker: str, end: Finish) -> None:
        """Write an attempt's end by the worker's writer."""
        assert end.fence.id in finish(self.ledger(worker), [end]).granted

    def die(self, worker: str) -> None:
        """The worker's process is killed, and nobody renewed its lease for a while."""
        self.nemesis.note("death", file=f"execution-{worker}-1.jsonl", pid=1)
        self.sql(
            f"{worker} lease",
            "UPDATE ledger.workers SET renewed_at = clock_timestamp() - interval '20 s',"
            " expires_at = clock_timestamp() - interval '5 s' WHERE lease = %(lease)s",
            lease=self.leases.pop(worker),
        )

    def leave(self, worker: str) -> None:
        """The worker drains: what it holds is given back as its last act."""
        close_lease(self.ledger(f"{worker} lease"), self.leases.pop(worker))

    def rescue(self) -> None:
        """The keeper ends what has expired."""
        rescue(self.ledger(KEEPER), None, 3)

    def stop(self, worker: str, seconds: float) -> None:
        """The nemesis has stopped a worker's processes, and lets them go on."""
        told = {"fault": "pause-worker", "target": f"{worker}@chaos"}
        self.nemesis.note("begin", t=time.monotonic() - seconds, **told)
        self.nemesis.note("end", **told)

    def kill(self, worker: str) -> None:
        """The nemesis kills a worker's parent; the keeper rescues its jobs."""
        self.nemesis.note("begin", fault="kill-worker", target=worker)
        self.nemesis.note("kill", worker=worker, pid=1, pool="threads", unstarted=60, unflushed=70)
        self.die(worker)
        self.nemesis.note("end", fault="kill-worker", target=worker)
        self.rescue()
