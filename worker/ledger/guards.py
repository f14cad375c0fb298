"""Guards: the state that a statement expects of a row, and what a time in the future means.

Each state stands in a subquery, where the planner does not see it. Else it takes the partial index
of that state, which the statistics of a quiet time call tiny, and reads all of it, the entries of
every earlier version of a row included.

Postgres's clock may step back, and a failover may bring a server whose clock is behind. A time that
a statement has written as its own `now` and that lies in the future is therefore past: the clock
has stepped since (PROTOCOL 30).
"""

from __future__ import annotations

from typing import Final

QUEUED: Final = "(SELECT 'queued')"
RUNNING: Final = "(SELECT 'running')"
SCHEDULED: Final = "(SELECT 'scheduled')"

#: The fingerprint of a row that stands for an id which was revoked before it was sent.
REVOKED: Final = b"revoked"

#: Seconds by which a time that was `now` must lie ahead to prove a step of the clock. Statements
#: that run side by side read the clock milliseconds apart.
STEP_SECONDS: Final = 1.0


def is_ahead(time: str) -> str:
    """Whether `time`, a column that was `now` when it was written, lies in the future."""
    return f"({time} > statement_timestamp() + {STEP_SECONDS:g} * interval '1 second')"


def is_expired(lease: str) -> str:
    """Whether `lease`, a row of `workers`, has not been renewed in its time.

    Not renewed since the clock stepped back is expired too. Nobody is rescued in haste for that:
    the keeper waits for a whole lease after a step, and whoever lives renews meanwhile.
    """
    return f"({lease}.expires_at < statement_timestamp() OR {is_ahead(lease + '.renewed_at')})"


def is_overdue(lease: str, after: str) -> str:
    """Whether `lease`, a row of `workers`, has not been renewed for the interval `after`."""
    since = f"statement_timestamp() - {lease}.renewed_at"
    return f"({since} > {after} OR {is_ahead(lease + '.renewed_at')})"


#: How the reason begins that a job is given which no living worker knows, and one which only
#: another worker knows than the one that took it; see `worker.ledger.strangers`.
NOWHERE: Final = "no living worker knows the task "
ELSEWHERE: Final = "waits for a worker that knows the task "
