"""Continuations: what follows a final move, done in the transaction that makes the move.

Every statement that makes a job final is followed by `carry_on`, whoever makes it: worker, keeper,
operator, retention. A test holds every such statement to that (PROTOCOL 29). The one exception is a
task's return, which publishes what follows it and hands that over with its finish.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from worker.errors import Conflict
from worker.jobs.continuations import ended_after, errback_calls
from worker.jobs.job import Ended, Ring
from worker.jobs.states import State
from worker.ledger.batches import batches
from worker.ledger.ended import BATCH, insert_ended, read_final
from worker.ledger.insert import insert, size_of


def carry_on(
    connection: Connection, ids: Sequence[str], *, errbacks_done: Collection[str] = ()
) -> list[Ring]:
    """End the jobs that were to follow `ids`, and enqueue the calls of their errbacks.

    Args:
        connection: in the transaction that has just made `ids` final.
        ids: jobs whose task did not return: failed, cancelled, or succeeded by `Ignore`.
        errbacks_done: those of `ids` whose errbacks are called already, or shall not be. Those of
            the other failed ones are called by a job of their queue.

    Returns:
        Doorbells to push after the commit; those that are not are rung by the keeper.
    """
    if not ids:
        return []
    ended: list[Ended] = []
    calls = []
    for job in read_final(connection, ids):
        ended += ended_after(job)
        if job.state is State.FAILED and job.id not in errbacks_done:
            calls += errback_calls(job)
    insert_ended(connection, ended)
    rings = []
    for part in batches(calls, BATCH, size_of):
        for answer in insert(connection, part):
            if not isinstance(answer, Conflict) and answer.ring is not None:
                rings.append(answer.ring)
    return rings
