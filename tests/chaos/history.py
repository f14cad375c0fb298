"""The history of a chaos run: what producers, executions and the nemesis saw, each for itself.

One append-only file a process, one JSON object a line, written by a single `write` each: a process
that is killed leaves whole lines, and at most one cut. Times are seconds of CLOCK_MONOTONIC, which
all processes of a machine share; the `clock` events of `nemesis.jsonl` tie them to the wall clock.

This module, like the checker, imports nothing of `worker`: it must not err as what it judges errs.

Events, by file:

`producer-<name>.jsonl`
    accepted  job, kind, key            an enqueue returned
    unsure    job, kind, key, error     an enqueue raised: the job may be there or not
    refused   kind, key, error          an enqueue was refused for good: the job must not be there
    cancelled job                       a cancel returned
    uncancelled job                     a cancel was refused: the job had ended
    cancel-unsure job, error            a cancel raised
    read      job, state, digest        the job was looked at; digest: of its result; the state is
              "missing" when it was not found
    begins    road, rate                a producer begins
    failed    error                     a whole batch was given up
    dropped   jobs, seconds             so many jobs were not enqueued: their time was over

    `accepted` and `unsure` have `arguments` where the judge needs them: failures, countdown. Where
    it expires, `expires`: seconds. Where it follows other jobs, `after`: their ids, and `upon`, how
    each of these must have ended: success or failure.

`execution-<worker>-<pid>.jsonl`
    start     job, attempt, lease, run, kind    a task's code begins; `run` is new each time; with
              `wall`, its own wall clock, where a fault has put that off
    end       job, attempt, lease, run, kind, how   it is over; how: returned, retried, raised,
              replaced
    accepted  job, kind, key, parent    the task enqueued a child, durably
    unsure    job, kind, key, error     as above, by a task

`nemesis.jsonl`
    clock     wall                      the wall clock, in Unix seconds, at the event's `t`
    begin     fault, target             a fault begins
    met       fault, target, proof      it is proven that its harm was done; proof: by what
    end       fault, target             its cause is gone
    kill      worker, pid, pool, held, unstarted, unflushed, aimed, waited   a worker's parent was
              killed: how many jobs it held; of these claimed and not started, and ended and not
              recorded; whether a busy moment was waited for, and how many seconds
    death     file, pid                 the process that wrote the execution file `file` is gone
    outage    store                     a store is away, or may refuse, from now on
    back      store                     it answers again
    ended     member, said, code, cause     a member ended with an exit code, and is started again;
              cause: the fault that asked for it, or null: that is unexpected
    drained   worker, seconds, exit_code, held      how long it took from SIGTERM to the end; how
              many jobs it held
    missed    fault, error              a fault met a store that was away
    step      seconds                   Postgres's clock is stepped by so many seconds
    settling                            nothing breaks any more, nothing is enqueued any more
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """One process's append-only file of events, closed when nobody has the journal any more.

    Args:
        path: the file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # Not at exit: threads may note things until the process is gone.
        weakref.finalize(self, os.close, self._file).atexit = False

    def note(self, event: str, **fields: Any) -> None:
        """Append one event, with the time it is noted at."""
        line = json.dumps({"t": time.monotonic(), "event": event, **fields})
        os.write(self._file, line.encode() + b"\n")


def read(path: Path) -> Iterator[Event]:
    """The events of one file; a last line that was cut by a kill is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def read_all(folder: Path, prefix: str) -> Iterator[tuple[Path, Event]]:
    """The events of every file of `folder` whose name begins with `prefix`, with their file."""
    for path in sorted(folder.glob(f"{prefix}*.jsonl")):
        for event in read(path):
            yield path, event
