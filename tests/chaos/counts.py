"""The figures of a run: what was asked of it, what befell it, and how fast it was meanwhile."""

from __future__ import annotations

import bisect
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tests.chaos.evidence import Evidence
from tests.chaos.history import Event

#: Seconds over which the rate of accepted jobs is taken.
WINDOW = 10.0

Counts = dict[str, Any]
Span = tuple[float, float]

_JOBS = """
    SELECT (SELECT count(*) FROM told WHERE accepted) AS accepted,
           (SELECT count(DISTINCT COALESCE(job, key)) FROM said
            WHERE event = 'unsure' AND NOT EXISTS (
                SELECT FROM told WHERE told.job = said.job AND accepted)) AS unsure,
           (SELECT count(*) FROM said WHERE event = 'refused') AS refused,
           (SELECT count(*) FROM told WHERE cancelled) AS cancelled,
           (SELECT count(*) FROM found) AS found
"""

# An execution that ended and whose end is another's to write has its result dropped.
_ATTEMPTS = """
    SELECT count(*) AS claimed,
           count(*) FILTER (WHERE by_keeper) AS rescued,
           (SELECT count(*) FROM runs) AS executed,
           (SELECT count(*) FROM runs WHERE ended IS NULL) AS killed,
           (SELECT count(*) FROM runs JOIN claims c USING (job, attempt)
            WHERE how = 'returned' AND c.left_for IS DISTINCT FROM 'succeeded') AS results_dropped
    FROM claims
"""

_ENDS = "SELECT kind, state, count(*) FROM found GROUP BY 1, 2 ORDER BY 1, 2"
_OUTCOMES = "SELECT outcome, count(*) FROM attempts GROUP BY 1 ORDER BY 1"
_TIMES = """
    SELECT times, count(*) FROM (SELECT count(*) AS times FROM runs GROUP BY job) AS t
    GROUP BY 1 ORDER BY 1
"""
_ACCEPTED = "SELECT t FROM said WHERE event = 'accepted' ORDER BY t"
# The load lasts while those producers are at it that said when they began; before and after it jobs
# may be enqueued too, to measure something or by a fault.
_LOAD = """
    SELECT min(t), max(t) FROM said WHERE event = 'accepted'
        AND (file IN (SELECT file FROM said WHERE event = 'begins')
             OR NOT EXISTS (SELECT FROM said WHERE event = 'begins'))
"""
_NEXT_CLAIM = """
    SELECT after.fault, min(claims.t) - after.t
    FROM unnest(%(faults)s::text[], %(times)s::float8[]) AS after (fault, t)
    LEFT JOIN LATERAL (
        SELECT t FROM claims WHERE claims.t > after.t ORDER BY t LIMIT 1) AS claims ON true
    GROUP BY after.fault, after.t
"""


def count(evidence: Evidence) -> Counts:
    """Everything worth a figure; plain dicts, as JSON has them."""
    cursor, nemesis = evidence.cursor, evidence.nemesis
    by_kind: dict[str, dict[str, int]] = defaultdict(dict)
    for kind, state, number in _rows(evidence, _ENDS):
        by_kind[kind][state] = number
    return {
        "jobs": _row(evidence, _JOBS),
        "by_kind": dict(by_kind),
        "attempts": _row(evidence, _ATTEMPTS) | {"by_outcome": dict(_rows(evidence, _OUTCOMES))},
        "executions_per_job": {str(times): jobs for times, jobs in _rows(evidence, _TIMES)},
        "faults": dict(Counter(e["fault"] for e in nemesis if e["event"] == "begin")),
        "kills": _kills([e for e in nemesis if e["event"] == "kill"]),
        "accepted_per_second": _rates(evidence),
        "seconds_from_fault_to_next_claim": _recoveries(cursor, nemesis),
    }


def outages(nemesis: Iterable[Event]) -> list[Span]:
    """When some store was away, or might refuse: begin and end, one after the other."""
    away: dict[str, float] = {}
    spans: list[Span] = []
    for event in nemesis:
        if event["event"] == "outage":
            away.setdefault(event["store"], event["wall"])
        elif event["event"] == "back" and event["store"] in away:
            spans.append((away.pop(event["store"]), event["wall"]))
    spans += [(began, float("inf")) for began in away.values()]
    merged: list[Span] = []
    for began, ended in sorted(spans):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(ended, merged[-1][1]))
        else:
            merged.append((began, ended))
    return merged


def _rates(evidence: Evidence) -> Counts | None:
    """Jobs a second in windows that no outage touches; None when there is no whole window."""
    accepted = [t for (t,) in _rows(evidence, _ACCEPTED)]
    ((first, last),) = _rows(evidence, _LOAD)
    if first is None:
        return None
    edges = [first, *(time for span in outages(evidence.nemesis) for time in span), last]
    rates: list[float] = []
    for began, ended in zip(edges[::2], edges[1::2], strict=True):
        began = max(began, first)
        whole = max(0, int((min(ended, last) - began) / WINDOW))
        marks = [bisect.bisect_left(accepted, began + at * WINDOW) for at in range(whole + 1)]
        rates += [(after - before) / WINDOW for before, after in pairwise(marks)]
    return _spread(rates) | {"windows": len(rates)} if rates else None


def _kills(kills: list[Event]) -> Counts:
    """Of the workers that were killed: what they held, by pool and in total."""
    pools: dict[str, list[Event]] = defaultdict(list)
    for kill in kills:
        pools[kill["pool"]].append(kill)
        pools["total"].append(kill)
    return {
        pool: {
            "kills": len(those),
            "unstarted": _spread([kill["unstarted"] for kill in those]),
            "unflushed": _spread([kill["unflushed"] for kill in those]),
        }
        for pool, those in sorted(pools.items())
    }


def _recoveries(cursor: Any, nemesis: list[Event]) -> Counts:
    ends = [(event["fault"], event["wall"]) for event in nemesis if event["event"] == "end"]
    cursor.execute(
        _NEXT_CLAIM, {"faults": [fault for fault, _ in ends], "times": [t for _, t in ends]}
    )
    waits: dict[str, list[float]] = defaultdict(list)
    for fault, seconds in cursor.fetchall():
        if seconds is not None:
            waits[fault].append(seconds)
    return {fault: _spread(those) for fault, those in sorted(waits.items())}


def _spread(numbers: list[Any]) -> Counts:
    return {
        "min": round(min(numbers), 3),
        "median": round(statistics.median(numbers), 3),
        "max": round(max(numbers), 3),
    }


def _row(evidence: Evidence, query: str) -> Counts:
    (row,) = _rows(evidence, query)
    names = [column.name for column in evidence.cursor.description or ()]
    return dict(zip(names, row, strict=True))


def _rows(evidence: Evidence, query: str) -> list[tuple[Any, ...]]:
    evidence.cursor.execute(query)
    return evidence.cursor.fetchall()
