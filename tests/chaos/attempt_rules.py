"""The rules of attempts: each ends as its execution did, is noted as it ended, and begins in time.

As `tests.chaos.rules`: each is one query that returns (job, detail).
"""

from __future__ import annotations

from typing import Final

#: Seconds after a stopped process goes on, in which it starts what it was about to start.
THAW: Final = 2.0
#: Jobs that a process of many threads may be about to start at one moment; up to 2 were seen.
ABOUT: Final = 8

# The end that was recorded is that of the very execution that the lease was for, and came after it.
_UNEARNED_END: Final = """
    SELECT c.job, format('attempt %%s under lease %%s became %%s by %%s, and %%s', c.attempt,
        c.lease, left_for, left_by, COALESCE('its execution has ' || r.how || CASE
            WHEN r.ended > left_at THEN ' only later' ELSE '' END,
            'no execution of it has an end'))
    FROM claims c
    LEFT JOIN ledger.attempts a ON a.job_id = c.job AND a.number = c.attempt
    LEFT JOIN runs r ON r.job = c.job AND r.attempt = c.attempt AND r.lease = c.lease
    WHERE CASE
        WHEN left_for = 'failed' AND a.outcome IS DISTINCT FROM 'lost' THEN 'raised'
        WHEN a.outcome = 'replaced' THEN 'replaced'
        WHEN left_for = 'scheduled' OR left_for = 'queued' AND a.outcome = 'retried' THEN 'retried'
        ELSE r.how END IS DISTINCT FROM r.how
       OR left_for IN ('failed', 'scheduled', 'queued') AND a.outcome IN ('failed', 'retried')
          AND r.ended > left_at + %(slack)s
"""

# How often `flaky` and `retrying` ask for another attempt, and when the next may begin, they were
# told by their producer. Of whom that is not known, only that it is at least once. A countdown runs
# from the call of `retry`, which was made after the start, and before the end was noted.
_EXECUTIONS: Final = """
    SELECT found.job, format('%%s succeeded after %%s retries, and was to fail %%s times',
        found.kind, count(r.run), COALESCE(failures::text, 'some'))
    FROM found LEFT JOIN told USING (job)
    LEFT JOIN retries r ON r.job = found.job
    WHERE found.state = 'succeeded' AND found.kind = ANY(%(retriers)s)
    GROUP BY found.job, found.kind, failures
    HAVING count(r.run) <> COALESCE(failures, greatest(count(r.run), 1))
    UNION ALL
    SELECT r.job, format('attempt %%s asked for %%s s, and the next began %%s s after its start',
        r.attempt, countdown, round((next.began - r.began)::numeric, 3))
    FROM retries r JOIN told USING (job)
    CROSS JOIN LATERAL (SELECT min(began) AS began FROM runs
                        WHERE runs.job = r.job AND runs.attempt > r.attempt) AS next
    WHERE next.began - r.began < countdown - %(slack)s
      -- a countdown is over when the clock is stepped past its end
      AND NOT EXISTS (SELECT FROM steps WHERE seconds > 0 AND t BETWEEN r.began AND next.began)
"""

# A success leaves no row: the job says it all. A failure that is the job's last is poison or none.
_MISMATCH: Final = """
    SELECT job_id, format('attempt %%s is noted as %%s, and was never granted', number, outcome)
    FROM ledger.attempts a LEFT JOIN claims c ON c.job = job_id AND c.attempt = number
    WHERE c.job IS NULL AND job_id NOT IN (SELECT job FROM unjudged)
    UNION ALL
    SELECT c.job, format('attempt %%s under lease %%s of %%s became %%s by %%s, and is noted as %%s'
        ' under %%s of %%s', c.attempt, c.lease, holder, COALESCE(left_for, 'nothing yet'), left_by,
        outcome, COALESCE(a.lease, 'no lease'), COALESCE(a.worker, 'nobody'))
    FROM claims c JOIN ledger.attempts a ON job_id = c.job AND number = c.attempt
    LEFT JOIN found ON found.job = c.job AND found.attempt = c.attempt
    WHERE a.lease IS DISTINCT FROM c.lease OR a.worker IS DISTINCT FROM holder OR CASE
        WHEN left_for = 'cancelled' THEN outcome <> 'cancelled'
        WHEN left_for = 'failed' AND found.state = 'failed'
            THEN outcome <> CASE WHEN is_poison THEN 'lost' ELSE 'failed' END
        WHEN left_for = 'failed' THEN outcome NOT IN ('failed', 'lost')
        WHEN left_for = 'scheduled' THEN outcome NOT IN ('retried', 'replaced')
        WHEN left_for = 'queued' AND by_keeper THEN outcome <> 'lost'
        WHEN left_for = 'queued' THEN outcome NOT IN ('retried', 'released', 'lost')
        ELSE true END
    UNION ALL
    SELECT c.job, format('attempt %%s is noted as lost by %%s, and no process of it died before',
        c.attempt, left_by)
    FROM claims c
    JOIN ledger.attempts a ON job_id = c.job AND number = c.attempt AND outcome = 'lost'
    LEFT JOIN runs r ON r.job = c.job AND r.attempt = c.attempt AND r.lease = c.lease
    WHERE by_holder AND NOT EXISTS (
        SELECT FROM deaths WHERE deaths.t <= left_at AND starts_with(deaths.file, COALESCE(r.file,
            'execution-' || substring(holder FROM '([^.@]*)(@[^@]*)?$') || '-')))
"""

# Only a loss is counted: by a parent that saw its child die always, by the keeper where the job was
# alone under its lease. What ends an attempt otherwise forgives the losses before it; to be given
# back, cancelled or claimed does not touch them.
_MISCOUNTED: Final = """
    SELECT m.job, format('%%s -> %%s by %%s (%%s): the losses counted became %%s from %%s',
        COALESCE(old_state, '(nothing)'), new_state, by, COALESCE(a.outcome, 'no outcome'),
        new_lost, before_lost)
    FROM moves m
    LEFT JOIN claims c ON c.job = m.job AND c.leaving = m.n
    LEFT JOIN ledger.attempts a ON a.job_id = c.job AND a.number = c.attempt
    WHERE new_state IS NOT NULL AND CASE
        WHEN old_state IS NULL OR old_state IN ('succeeded', 'failed', 'cancelled')
            AND new_state = 'queued' THEN new_lost <> 0
        WHEN c.job IS NULL OR left_for = 'cancelled' OR a.outcome = 'released'
            THEN new_lost <> before_lost
        WHEN by_keeper THEN new_lost NOT IN (before_lost, before_lost + 1)
            OR new_lost > before_lost AND beside > 1
            OR left_for = 'queued' AND new_lost >= %(limit)s
        WHEN left_for <> 'succeeded' AND a.outcome = 'lost' THEN new_lost <> before_lost + 1
            OR left_for = 'queued' AND new_lost >= %(limit)s
        WHEN a.outcome IS NULL AND left_for <> 'succeeded' THEN false  -- told as unaccounted
        ELSE new_lost <> 0 END
    UNION ALL
    SELECT found.job, format('%%s losses are counted, and its last move left %%s', lost, new_lost)
    FROM found JOIN moves ON moves.job = found.job AND is_last WHERE lost <> new_lost
"""

# The worker learns of a cancel only when it finishes, but starts nothing when its lease may have
# expired. A process that is stopped, or held by the GIL, between that look and the task's first
# line goes on to start what it had looked at. One for each child that ran anything under the lease
# is forgiven; where one process did, it is taken to be one of threads, and `ABOUT` are.
_LATE_START: Final = """
    WITH late AS (
        SELECT r.job, c.lease, left_at, r.began, format(
            'run %%s of attempt %%s began %%s s after it had become %%s by %%s', r.run, r.attempt,
            round((r.began - left_at)::numeric, 3), left_for, left_by) AS detail,
            EXISTS (SELECT FROM stops s WHERE starts_with(r.file, files) AND s.began < left_at
                    AND r.began BETWEEN s.began AND s.ended + %(thaw)s) AS is_thawed
        FROM runs r JOIN claims c USING (job, attempt, lease) LEFT JOIN leases l USING (lease)
        WHERE r.began > left_at + %(slack)s
            + CASE WHEN left_for = 'cancelled' THEN COALESCE(seconds, 0) ELSE 0 END
    )
    SELECT job, detail FROM (
        SELECT late.*, count(*) FILTER (WHERE is_thawed) OVER (PARTITION BY late.lease) AS thawed,
            (SELECT count(DISTINCT file) FROM runs WHERE runs.lease = late.lease) AS processes
        FROM late) AS late
    WHERE NOT is_thawed OR thawed > CASE WHEN processes = 1 THEN %(about)s ELSE processes END
"""

#: The violations by name, in the order in which they are told.
RULES: Final = {
    "unearned-end": _UNEARNED_END,
    "executions": _EXECUTIONS,
    "attempt-mismatch": _MISMATCH,
    "miscounted-loss": _MISCOUNTED,
    "late-start": _LATE_START,
}
