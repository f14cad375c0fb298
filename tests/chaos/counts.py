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

#: Seconds over which the rate of accepted jobs is taken: short ones, for they are cut out between
#: the outages, and longer than the pause between a producer's bursts.
WINDOW = 3.0
#: Seconds after an outage that still count as its own: a producer finds the store back again.
FOUND_BACK = 1.0

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
_OUTCOMES = "SELECT outcome, count(*) FROM ledger.attempts GROUP BY 1 ORDER BY 1"
_TIMES = """
    SELECT times, count(*) FROM (SELECT count(*) AS times FROM runs GROUP BY job) AS t
    GROUP BY 1 ORDER BY 1
"""
# The load lasts while those producers are at it that said when they began; before and after it jobs
# may be enqueued too, to measure something or by a fault, and tasks enqueue children meanwhile.
_LOAD = """
    SELECT t FROM said WHERE event = 'accepted'
        AND (file IN (SELECT file FROM said WHERE event = 'begins')
             OR NOT EXISTS (SELECT FROM said WHERE event = 'begins'))
    ORDER BY t
"""
# How many more jobs had not ended than when the load began, at the worst moment.
_BACKLOG = """
    SELECT COALESCE(max(waiting), 0) FROM (
        SELECT sum(CASE WHEN old_state IS NULL THEN 1
                        WHEN new_state IN ('succeeded', 'failed', 'cancelled')
                             AND old_state NOT IN ('succeeded', 'failed', 'cancelled') THEN -1
                        ELSE 0 END) OVER (ORDER BY n) AS waiting
        FROM moves WHERE t BETWEEN %(first)s AND %(last)s) AS moments
"""


def count(evidence: Evidence) -> Counts:
    """Everything worth a figure; plain dicts, as JSON has them."""
    nemesis = evidence.nemesis
    by_kind: dict[str, dict[str, int]] = defaultdict(dict)
    for kind, state, number in _rows(evidence, _ENDS):
        by_kind[kind][state] = number
    load = [t for (t,) in _rows(evidence, _LOAD)]
    return {
        "jobs": _row(evidence, _JOBS),
        "by_kind": dict(by_kind),
        "attempts": _row(evidence, _ATTEMPTS) | {"by_outcome": dict(_rows(evidence, _OUTCOMES))},
        "executions_per_job": {str(times): jobs for times, jobs in _rows(evidence, _TIMES)},
        "faults": dict(Counter(e["fault"] for e in nemesis if e["event"] == "begin")),
        "kills": _kills([e for e in nemesis if e["event"] == "kill"]),
        "drains": _drains([e for e in nemesis if e["event"] == "drained"]),
        "accepted_per_second": rates(load, nemesis),
        "backlog": _backlog(evidence, load),
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


def rates(load: list[float], nemesis: list[Event]) -> Counts | None:
    """Jobs a second in windows that no outage touches; None when there is no whole window."""
    if not load:
        return None
    first, last = load[0], load[-1]
    seen: list[float] = []
    calm_since = first
    # An outage may end after the load, or never: the file was cut, or nothing mended it.
    for began, ended in [*outages(nemesis), (last, last)]:
        whole = max(0, int((min(began, last) - calm_since) / WINDOW))
        marks = [bisect.bisect_left(load, calm_since + at * WINDOW) for at in range(whole + 1)]
        seen += [(after - before) / WINDOW for before, after in pairwise(marks)]
        calm_since = min(max(calm_since, ended + FOUND_BACK), last)
    return _spread(seen) | {"windows": len(seen), "seconds": WINDOW} if seen else None


def _backlog(evidence: Evidence, load: list[float]) -> int:
    if not load:
        return 0
    ((jobs,),) = _rows(evidence, _BACKLOG, {"first": load[0], "last": load[-1]})
    return int(jobs)


def _kills(kills: list[Event]) -> Counts:
    """Of the workers that were killed: what they held; in total, by pool, and by aim."""
    groups: dict[str, list[Event]] = defaultdict(list)
    for kill in kills:
        groups[kill["pool"]].append(kill)
        groups["total"].append(kill)
        if "aimed" in kill:
            groups[f"{kill['pool']}, {'aimed' if kill['aimed'] else 'unaimed'}"].append(kill)
    return {name: {"kills": len(those), **_held(those)} for name, those in sorted(groups.items())}


def _held(kills: list[Event]) -> Counts:
    """Figures of kills; of one whose worker wrote something unreadable, some are not known."""
    known = {
        figure: [kill[figure] for kill in kills if kill.get(figure) is not None]
        for figure in ("unstarted", "unflushed", "held", "waited")
    }
    return {figure: _spread(numbers) for figure, numbers in known.items() if numbers}


def _drains(drains: list[Event]) -> Counts | None:
    """Workers that were asked to end: how long that took."""
    if not drains:
        return None
    return {
        "drains": len(drains),
        "seconds": _spread([drain["seconds"] for drain in drains]),
        "exit_codes": dict(Counter(str(drain["exit_code"]) for drain in drains)),
    }


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


def _rows(
    evidence: Evidence, query: str, parameters: dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    evidence.cursor.execute(query, parameters)
    return evidence.cursor.fetchall()
