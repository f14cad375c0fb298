"""Cancel or replay every job of a selection, a batch after the other."""

from __future__ import annotations

from collections.abc import Callable

from worker.broker.doorbells import Doorbells
from worker.flows.ring import Ringing
from worker.ledger.bulk import ENDED_BADLY, OPEN, Selection, cancel_batch, replay_batch, selected
from worker.ledger.database import Ledger


def cancel_many(
    ledger: Ledger,
    selection: Selection,
    reason: str,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Cancel the jobs that are meant, in transactions of a bounded size; how many were cancelled.

    Whoever stops in the middle has cancelled whole batches; a repeat cancels the rest.

    Args:
        ledger: where.
        selection: which; what was created after the call is left alone.
        reason: kept as each job's error.
        progress: told after each batch how many are cancelled until then.

    Raises:
        Conflict: it names a state that cannot be cancelled.
        Unavailable: Postgres is away; what was cancelled until then stays so.
    """
    selection.check(OPEN, "cancelled")
    done = 0
    for state, ids in selected(ledger, selection):
        done += cancel_batch(ledger, ids, [state], reason)
        progress(done)
    return done


def replay_many(
    ledger: Ledger,
    doorbells: Doorbells,
    selection: Selection,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Queue the jobs that are meant again, in transactions of a bounded size, and ring for each
    batch; how many were queued.

    Args:
        ledger: where.
        doorbells: where to ring; when Redis is away, the keeper rings later.
        selection: which; what was created after the call is left alone.
        progress: told after each batch how many are queued until then.

    Raises:
        Conflict: it names a state that cannot be replayed.
        Unavailable: Postgres is away; what was queued until then runs.
    """
    selection.check(ENDED_BADLY, "replayed")
    done = 0
    with Ringing(doorbells) as ringing:
        for state, ids in selected(ledger, selection):
            rings = replay_batch(ledger, ids, [state])
            ringing.add(rings)
            done += len(rings)
            progress(done)
    return done
