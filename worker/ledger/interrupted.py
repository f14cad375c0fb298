"""Jobs that were running whenever a worker shut down: who asks each worker in turn to end?"""

from __future__ import annotations

#: How the reason of an attempt begins that was given back because its worker shut down. Not of one
#: that was not started yet.
INTERRUPTED = "the worker shut down while it ran"
#: Attempts in a row that end so before a job is a suspect. One that sends a signal to its own
#: worker looks like an operator. Several deploys may interrupt a long job; to run alone does it no
#: harm.
MOST = 5


def suspicion(reason: str) -> str:
    """SQL: the suspicion of a row of `jobs` whose attempt is given back for a reason.

    It becomes 1 with the last of `MOST` attempts that were interrupted in a row.

    Args:
        reason: expression of the attempt's error.
    """
    return f"""
        CASE WHEN jobs.suspicion = 0 AND starts_with({reason}, '{INTERRUPTED}') THEN
            (SELECT CASE WHEN count(*) = {MOST - 1} THEN 1 ELSE 0 END FROM (
                SELECT outcome, error FROM ledger.attempts
                WHERE job_id = jobs.id ORDER BY number DESC LIMIT {MOST - 1}) AS earlier
             WHERE outcome = 'released' AND starts_with(error, '{INTERRUPTED}'))
        ELSE jobs.suspicion END
    """  # noqa: S608 -- constants of the ledger
