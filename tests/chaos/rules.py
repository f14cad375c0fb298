"""The rules: each finds, in the evidence, the jobs that broke one part of the promise.

Each is one query that returns (job, detail), and finds nothing in an honest run. What a job may do
is written down here a second time, independently of the service's own table.
"""

from __future__ import annotations

from typing import Final

from tests.chaos import attempt_rules, canvas_rules, waiting_rules

#: Every state and the states that may follow it.
LEGAL: Final = {
    "scheduled": ("queued", "failed", "cancelled"),
    "queued": ("running", "cancelled"),
    "running": ("succeeded", "failed", "scheduled", "queued", "cancelled"),
    "succeeded": (),
    "failed": ("queued",),
    "cancelled": ("queued",),
}
#: How each kind of job must end; `poison` is failed, with the losses that prove it.
EXPECTED: Final = {
    **dict.fromkeys(
        ("noop", "sleep", "cpu", "flaky", "retrying", "large", "parent", "long", "gil",
         "ignoring", "dying_once"),
        "succeeded",
    ),
    **dict.fromkeys(("expiring", "replacing"), "succeeded"),
    "failing": "failed",
    "dying": "poison",
}  # fmt: skip
#: The kinds that kill their process, and the kind whose result nobody keeps.
KILLERS: Final = ["dying", "dying_once"]
RESULTLESS: Final = "ignoring"
#: The kinds that ask for another attempt.
RETRIERS: Final = ["flaky", "retrying"]
#: Seconds for which two executions may seem to overlap, the clocks' ties being what they are.
SLACK: Final = 0.05

_FINAL: Final = "('succeeded', 'failed', 'cancelled')"

#: What the rules look things up in.
TABLES: Final = f"""
    CREATE TEMP TABLE legal (source text, target text);
    INSERT INTO legal VALUES
        {", ".join(f"('{a}', '{b}')" for a, targets in LEGAL.items() for b in targets)};
    CREATE TEMP TABLE expected (kind text, ending text);
    INSERT INTO expected VALUES {", ".join(f"('{k}', '{end}')" for k, end in EXPECTED.items())};
    -- Each claim that was granted, and how its attempt left `running`: the holder's name, its
    -- sessions, who wrote it. `leaving` is null while it runs.
    CREATE TEMP TABLE claims AS
    SELECT c.job, c.new_attempt AS attempt, c.new_lease AS lease, c.n, c.t, c.life,
           m.n AS leaving, m.t AS left_at, m.new_state AS left_for, m.by AS left_by, m.xid,
           m.by IN (left(c.new_worker, 63), left(c.new_worker || ' lease', 63)) AS by_holder,
           m.by LIKE 'celery-ledger keeper%%' AS by_keeper, c.new_worker AS holder,
           -- attempts that one transaction took from one lease
           count(*) OVER (PARTITION BY c.new_lease, m.xid) AS beside
    FROM moves c
    LEFT JOIN LATERAL (
        SELECT * FROM moves WHERE job = c.job AND n > c.n AND old_state = 'running'
            AND new_state <> 'running' ORDER BY n LIMIT 1) m ON true
    WHERE c.old_state = 'queued' AND c.new_state = 'running';
    CREATE INDEX ON claims (job, attempt);
    CREATE INDEX ON claims (lease);
    ANALYZE claims;
    -- The executions that asked for another attempt, where that was recorded.
    CREATE TEMP TABLE retries AS
    SELECT r.job, r.attempt, r.run, r.began, r.ended
    FROM claims c JOIN runs r USING (job, attempt, lease)
    LEFT JOIN ledger.attempts a ON a.job_id = job AND a.number = attempt
    WHERE how = 'retried' AND (left_for = 'scheduled' OR left_for = 'queued'
                               AND a.outcome = 'retried');
    CREATE INDEX ON retries (job);
    ANALYZE retries;
    {waiting_rules.TABLES}
"""

_LOST: Final = """
    SELECT told.job, COALESCE('accepted, and is ' || found.state, 'accepted, and is not there')
    FROM told LEFT JOIN found USING (job) WHERE accepted AND is_final IS NOT TRUE
"""

_UNFINISHED: Final = """
    SELECT found.job, 'never acknowledged, and is ' || state
    FROM found LEFT JOIN told USING (job) WHERE NOT is_final AND accepted IS NOT TRUE
    UNION ALL
    SELECT job, format('%%s of Celery is %%s', task, state) FROM unjudged
    WHERE state NOT IN ('succeeded', 'failed', 'cancelled') AND NOT is_cut
"""

_PHANTOM: Final = """
    SELECT found.job, CASE WHEN EXISTS (SELECT FROM said WHERE event = 'refused'
                                        AND (said.job = found.job OR said.key = found.key))
                      THEN 'it was refused' ELSE 'nobody enqueued it' END
    FROM found LEFT JOIN told USING (job) WHERE spoken_of IS NOT TRUE
    UNION ALL
    SELECT min(job), 'one key, several jobs: ' || string_agg(DISTINCT job, ', ')
    FROM (SELECT job, key FROM said WHERE event = 'accepted'
          UNION SELECT job, key FROM found) AS keyed
    WHERE key IS NOT NULL GROUP BY key HAVING count(DISTINCT job) > 1
"""

_RECORDED_TWICE: Final = f"""
    SELECT job, format('recorded %%s times without a replay', count(*))
    FROM moves WHERE new_state IN {_FINAL} AND old_state IS DISTINCT FROM new_state
    GROUP BY job, life HAVING count(*) > 1
    UNION ALL
    SELECT job, format('its result or error was changed by %%s after it had %%s', by, old_state)
    FROM moves WHERE old_state IN {_FINAL} AND new_state = old_state AND changed
"""

# A worker's session is known by its lease's name; whoever has none is a client, and may cancel.
_STALE_WRITE: Final = """
    SELECT job, format('attempt %%s of %%s was moved to %%s by %%s',
                       attempt, holder, left_for, left_by)
    FROM claims
    WHERE leaving IS NOT NULL AND NOT by_holder
      AND NOT (by_keeper AND left_for IN ('queued', 'failed'))
      AND NOT (left_for = 'cancelled' AND NOT by_keeper AND NOT EXISTS (
          SELECT FROM leases WHERE left_by IN (writer, renewer)))
    UNION ALL
    SELECT found.job, format('succeeded in attempt %%s under lease %%s with the result of run %%s,'
                             ' which is %%s', found.attempt, c.lease, COALESCE(found.run, '(none)'),
                             COALESCE(r.told, 'no execution of this job'))
    FROM found
    JOIN claims c ON c.job = found.job AND c.attempt = found.attempt AND c.left_for = 'succeeded'
    LEFT JOIN LATERAL (
        SELECT COALESCE(how, 'without an end') || format(', of attempt %%s under %%s',
                                                         runs.attempt, runs.lease) AS told,
               runs.attempt = c.attempt AND runs.lease = c.lease AND how = 'returned'
               AND ended <= c.left_at + %(slack)s AS is_it
        FROM runs
        WHERE runs.job = found.job
          AND (runs.run = found.run OR found.kind = %(resultless)s AND found.run IS NULL)
        ORDER BY is_it DESC NULLS LAST LIMIT 1) r ON true
    WHERE found.state = 'succeeded' AND is_it IS NOT TRUE
"""

_ILLEGAL_MOVE: Final = """
    SELECT job, format('%%s -> %%s, attempt %%s -> %%s, lease %%s -> %%s, by %%s',
        COALESCE(old_state, '(nothing)'), COALESCE(new_state, '(nothing)'), old_attempt,
        new_attempt, old_lease, new_lease, by)
    FROM moves
    WHERE CASE
        -- what will never come has ended from the start
        WHEN old_state IS NULL AND job IN (SELECT job FROM followers WHERE NOT is_due)
            THEN new_state NOT IN ('failed', 'cancelled') OR new_attempt <> 0
        WHEN old_state IS NULL THEN new_state NOT IN ('scheduled', 'queued') OR new_attempt <> 0
        WHEN new_state IS NULL THEN true
        WHEN old_state = 'queued' AND new_state = 'running' THEN new_attempt <> old_attempt + 1
        WHEN old_state = new_state THEN new_attempt <> old_attempt
            OR old_state = 'running' AND new_lease IS DISTINCT FROM old_lease
        ELSE new_attempt <> old_attempt
            OR (old_state, new_state) NOT IN (SELECT source, target FROM legal)
        END
    UNION ALL
    SELECT job, format('its history has a gap: it was %%s, and moved from %%s',
        COALESCE(before_state, '(nothing)'), COALESCE(old_state, '(nothing)'))
    FROM moves WHERE before_state IS DISTINCT FROM old_state
    UNION ALL
    SELECT found.job, format('its history has a gap: it is %%s, and moved last to %%s',
        found.state, COALESCE(new_state, '(nothing)'))
    FROM found LEFT JOIN moves ON moves.job = found.job AND is_last
    WHERE new_state IS DISTINCT FROM state OR new_attempt IS DISTINCT FROM found.attempt
    UNION ALL
    SELECT job, format('claimed by %%s under lease %%s, which was not open', holder, claims.lease)
    FROM claims LEFT JOIN leases USING (lease)
    WHERE opened IS NULL OR t < opened OR t > ended
"""

_DOUBLE_RUN: Final = """
    SELECT a.job, format('runs %%s (attempt %%s) and %%s (attempt %%s) for %%s ms at once',
        a.run, a.attempt, b.run, b.attempt, round(together * 1000))
    FROM runs a
    JOIN runs b ON b.job = a.job AND a.run < b.run
    JOIN leases x ON x.lease = a.lease
    JOIN leases y ON y.lease = b.lease
    CROSS JOIN LATERAL (
        SELECT least(a.over, b.over, COALESCE(x.ended, x.expires), COALESCE(y.ended, y.expires))
               - greatest(a.began, b.began, x.opened, y.opened) AS together) AS t
    WHERE together > %(slack)s
"""

_UNCLAIMED_RUN: Final = """
    SELECT runs.job, format('run %%s of attempt %%s under lease %%s was never granted',
        run, runs.attempt, runs.lease)
    FROM runs LEFT JOIN claims ON claims.job = runs.job AND claims.attempt = runs.attempt
        AND claims.lease = runs.lease
    WHERE claims.job IS NULL
    UNION ALL
    SELECT job, format('run %%s of attempt %%s began %%s s before it was granted',
        run, attempt, round((claims.t - began)::numeric, 3))
    FROM runs JOIN claims USING (job, attempt, lease) WHERE began < claims.t - %(slack)s
    UNION ALL
    SELECT job, format('attempt %%s was executed %%s times', attempt, count(*))
    FROM runs GROUP BY job, attempt HAVING count(*) > 1
"""

# One that runs still is reported as a job without an end, a failure as one without evidence.
_UNACCOUNTED: Final = """
    SELECT c.job, format('attempt %%s became %%s by %%s and left no outcome',
        c.attempt, c.left_for, c.left_by)
    FROM claims c LEFT JOIN ledger.attempts a ON a.job_id = c.job AND a.number = c.attempt
    WHERE leaving IS NOT NULL AND left_for NOT IN ('succeeded', 'failed')
      AND COALESCE(a.outcome, '') = ''
"""

_NO_EVIDENCE: Final = """
    SELECT job, 'failed without an error' FROM found
    WHERE state = 'failed' AND COALESCE(error, '') = ''
    UNION ALL
    SELECT job, 'failed without a traceback: ' || left(found.error, 200)
    FROM found LEFT JOIN ledger.attempts a ON a.job_id = job AND a.number = found.attempt
    WHERE state = 'failed' AND NOT is_poison AND found.error <> ''
      AND NOT (found.attempt = 0 AND job IN (SELECT job FROM followers WHERE NOT is_due))
      AND COALESCE(a.traceback, '') = ''
    UNION ALL
    SELECT job, format('poison with the evidence of %%s of %%s losses', losses, %(limit)s)
    FROM found CROSS JOIN LATERAL (
        SELECT count(*) AS losses FROM ledger.attempts a
        WHERE a.job_id = job AND outcome = 'lost' AND a.worker IS NOT NULL
          AND a.lease IS NOT NULL AND a.started_at IS NOT NULL
          AND a.number > COALESCE((SELECT max(m.new_attempt) FROM moves m WHERE m.job = found.job
              AND m.old_state IN ('failed', 'cancelled') AND m.new_state = 'queued'), 0)) AS l
    WHERE is_poison AND losses < %(limit)s
"""

_INNOCENT: Final = """
    SELECT job, format('%%s: %%s', kind, error) FROM found
    WHERE is_poison AND kind <> ALL(%(killers)s)
"""

_WRONG_END: Final = """
    SELECT found.job, format('%%s is %%s%%s, expected %%s%%s', found.kind, state,
        ' (' || left(error, 200) || ')', COALESCE(ending, 'nothing: the kind is unknown'),
        CASE WHEN cancelled THEN ' or rather cancelled, as was answered' END)
    FROM found LEFT JOIN told USING (job) LEFT JOIN expected ON expected.kind = found.kind
    WHERE is_final AND NOT (is_poison AND found.kind <> ALL(%(killers)s))
      AND CASE WHEN found.job IN (SELECT job FROM followers WHERE NOT is_due)
                   THEN state = 'succeeded'
               WHEN state = 'cancelled' THEN cancel_asked IS NOT TRUE AND expires IS NULL
               ELSE cancelled IS TRUE
                    OR CASE WHEN is_poison THEN 'poison' ELSE state END IS DISTINCT FROM ending
          END
"""

# The last renewal by the worker itself is believed beside the row that was deleted.
_FALSE_RESCUE: Final = """
    SELECT job, format('lease %%s of %%s was ended by %%s %%s s before it expired', l.lease, name,
        ended_by, round((greatest(end_expires, granted_until) - ended)::numeric, 3))
    FROM leases l LEFT JOIN claims c ON c.lease = l.lease AND NOT c.by_holder
        AND c.left_for <> 'cancelled' AND c.left_at >= l.ended
    WHERE ended_by NOT IN (writer, renewer) AND greatest(end_expires, granted_until) > ended
    UNION ALL
    SELECT job, format('attempt %%s was taken by %%s while lease %%s of %%s stood',
        attempt, left_by, c.lease, holder)
    FROM claims c LEFT JOIN leases l USING (lease)
    WHERE by_keeper AND opened IS NOT NULL AND (ended IS NULL OR ended > left_at)
"""

# What a client has read once, a restart must not undo, not even one that undoes the audit with it.
_ROLLED_BACK: Final = f"""
    SELECT DISTINCT said.job, format('it was read as %%s with %%s, and is %%s with %%s', said.state,
        COALESCE(left(digest, 12), 'no result'), COALESCE(jobs.state, 'not there'),
        COALESCE(left(encode(sha256(result), 'hex'), 12), 'no result'))
    FROM said LEFT JOIN ledger.jobs ON jobs.id = said.job
    WHERE event = 'read' AND said.state IN {_FINAL}
      AND (jobs.state, encode(sha256(result), 'hex')) IS DISTINCT FROM (said.state, digest)
      AND NOT EXISTS (SELECT FROM moves WHERE moves.job = said.job AND life > 0)
    UNION ALL
    SELECT r.job, 'it was accepted, and then not to be found'
    FROM said r JOIN said a ON a.job = r.job AND a.event = 'accepted' AND a.t < r.t
    WHERE r.event = 'read' AND r.state = 'missing'
"""

#: The violations by name, in the order in which they are told.
RULES: Final = {
    "lost": _LOST,
    "unfinished": _UNFINISHED,
    "phantom": _PHANTOM,
    "recorded-twice": _RECORDED_TWICE,
    "stale-write": _STALE_WRITE,
    "illegal-move": _ILLEGAL_MOVE,
    "double-run": _DOUBLE_RUN,
    "unclaimed-run": _UNCLAIMED_RUN,
    "unaccounted-attempt": _UNACCOUNTED,
    "dead-letter-without-evidence": _NO_EVIDENCE,
    "innocent-condemned": _INNOCENT,
    "wrong-end": _WRONG_END,
    "false-rescue": _FALSE_RESCUE,
    "rolled-back": _ROLLED_BACK,
    **attempt_rules.RULES,
    **waiting_rules.RULES,
    **canvas_rules.RULES,
}
