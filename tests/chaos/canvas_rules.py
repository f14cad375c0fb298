"""The rules of what follows other jobs, and of what expires.

As `tests.chaos.rules`: each is one query that returns (job, detail). That every id which Celery
gave out ends is the rule "lost"; that a chord's body is recorded once is "recorded-twice".
"""

from __future__ import annotations

from typing import Final

#: Seconds after its expiry within which a job may still be claimed: times are noted when a
#: statement ends, which may wait for a lock.
BOUND: Final = 2.0

# A step, a body, a link or an errback that was claimed before what it follows had ended as asked.
_EARLY_STEP: Final = """
    SELECT c.job, format('attempt %%s was claimed by %%s, and %%s, which it follows, had not %%s',
        c.attempt, holder, parent, asked)
    FROM claims c JOIN deps USING (job)
    WHERE NOT EXISTS (SELECT FROM moves m WHERE m.job = parent AND m.n < c.n
                      AND m.new_state = asked)
"""

# Links and errbacks, whose ids were given to nobody, come once what they are for has happened.
_MISSING_STEP: Final = """
    SELECT followers.job, COALESCE('it follows what has ended, and is ' || state,
                                   'it follows what has ended, and is not there')
    FROM followers LEFT JOIN found USING (job) LEFT JOIN told USING (job)
    WHERE is_due AND is_promised AND accepted IS NOT TRUE AND is_final IS NOT TRUE
"""

# After a step back of Postgres's clock it may expire late, by less than its own time.
_STARTED_LATE: Final = """
    SELECT c.job, format('attempt %%s was claimed %%s s after it was enqueued, and expired after'
        ' %%s s', c.attempt, round((c.t - i.t)::numeric, 3), expires)
    FROM claims c JOIN told USING (job)
    JOIN moves i ON i.job = c.job AND i.old_state IS NULL
    WHERE c.t - i.t > %(bound)s + expires * CASE WHEN EXISTS (
        SELECT FROM steps WHERE seconds < 0 AND steps.t BETWEEN i.t AND c.t) THEN 2 ELSE 1 END
"""

# Nor before its time, if Postgres's clock was not stepped past that.
_EXPIRED_EARLY: Final = """
    SELECT m.job, format('it was cancelled %%s s after it was enqueued, and was to expire after'
        ' %%s s', round((m.t - i.t)::numeric, 3), expires)
    FROM moves m JOIN told USING (job)
    JOIN moves i ON i.job = m.job AND i.old_state IS NULL
    WHERE m.new_state = 'cancelled' AND m.old_state <> 'cancelled' AND cancel_asked IS NOT TRUE
      AND m.t - i.t < expires - %(slack)s
      AND NOT EXISTS (SELECT FROM steps WHERE seconds > 0 AND steps.t BETWEEN i.t AND m.t)
"""

#: The violations by name, in the order in which they are told.
RULES: Final = {
    "early-step": _EARLY_STEP,
    "missing-step": _MISSING_STEP,
    "started-late": _STARTED_LATE,
    "expired-early": _EXPIRED_EARLY,
}
