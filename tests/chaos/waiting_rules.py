"""The rule that no job waits for what will never come, judged by the last snapshot alone.

A final job's message names the jobs that were to follow it: the later steps of its chain with all
that nests in them, and a chord's body in the message of Celery's own job that waits for the
chord's header. When everything is over each of them is there, and final too.
"""

from __future__ import annotations

from typing import Final

_FINAL: Final = "('succeeded', 'failed', 'cancelled')"

#: `named`: each job that a final job's message names, with that job.
TABLES: Final = f"""
    CREATE FUNCTION pg_temp.json_of(body bytea) RETURNS json LANGUAGE plpgsql AS $$
    BEGIN
        RETURN convert_from(body, 'UTF8')::json;
    EXCEPTION WHEN others THEN
        RETURN NULL;  -- no JSON: it names nothing
    END $$;

    CREATE TEMP TABLE named AS
    WITH RECURSIVE bodies AS MATERIALIZED (
        SELECT id AS job, task, state, pg_temp.json_of(body) AS body FROM ledger.jobs
        WHERE state IN {_FINAL} AND position('"task_id"'::bytea IN body) > 0
    ), walk (job, task, state, item) AS (
        SELECT job, task, state, body -> 2 -> 'chain' FROM bodies
        UNION ALL
        SELECT job, task, state, body -> 0 -> 1 FROM bodies WHERE task = 'celery.chord_unlock'
        UNION ALL
        SELECT walk.job, walk.task, walk.state, inner_items.item
        FROM walk CROSS JOIN LATERAL (
            SELECT value FROM json_array_elements(
                CASE WHEN json_typeof(walk.item) = 'array' THEN walk.item END)
            UNION ALL
            SELECT kwargs -> part
            FROM (SELECT walk.item -> 'kwargs' AS kwargs) AS k,
                 unnest(ARRAY['tasks', 'header', 'body']) AS part
            WHERE walk.item ->> 'subtask_type' IN ('chain', 'group', 'chord')
            UNION ALL
            SELECT walk.item -> 'options' -> 'chain'
        ) AS inner_items (item)
        WHERE json_typeof(inner_items.item) IN ('array', 'object')
    )
    SELECT DISTINCT item -> 'options' ->> 'task_id' AS named, job, state FROM walk
    WHERE json_typeof(item) = 'object' AND item -> 'options' ->> 'task_id' IS NOT NULL
      AND COALESCE(item ->> 'subtask_type', '') NOT IN ('chain', 'group', 'chord');
    ANALYZE named;
"""

_WAITS_IN_VAIN: Final = f"""
    SELECT named, format('%%s, which it was to follow, has %%s, and it is %%s',
        named.job, named.state, COALESCE(jobs.state, 'not there'))
    FROM named LEFT JOIN ledger.jobs ON jobs.id = named
    WHERE jobs.state IS NULL OR jobs.state NOT IN {_FINAL}
    UNION ALL
    SELECT id, 'it waits for ever for what was to replace it' FROM ledger.jobs
    WHERE state = 'scheduled' AND run_at = 'infinity'
"""

RULES: Final = {"waits-in-vain": _WAITS_IN_VAIN}
