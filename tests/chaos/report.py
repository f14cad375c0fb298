"""What the checker found: counts, and the violations with the whole story of each example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.counts import Counts
from tests.chaos.evidence import Evidence

#: Everything that is known of one job, in the order of time.
_STORY = """
    SELECT t, what FROM (
        SELECT t, 0 AS rank, format('%%s: %%s', file, event) AS what FROM said WHERE job = %(job)s
        UNION ALL
        SELECT t, 1, format('%%s -> %%s, attempt %%s, lost %%s, lease %%s, by %%s',
            COALESCE(old_state, '(nothing)'), COALESCE(new_state, '(nothing)'),
            COALESCE(new_attempt, old_attempt), new_lost, COALESCE(new_lease, old_lease), by)
            || CASE WHEN changed THEN ', result or error changed' ELSE '' END
        FROM moves WHERE job = %(job)s
        UNION ALL
        SELECT began, 2, format('%%s: run %%s of attempt %%s under lease %%s starts',
            file, run, attempt, lease) FROM runs WHERE job = %(job)s
        UNION ALL
        SELECT over, 3, format('run %%s %%s', run,
            COALESCE(how, 'has no end; its process was over by now'))
        FROM runs WHERE job = %(job)s
        UNION ALL
        SELECT extract(epoch FROM ended_at), 4, format('noted: attempt %%s of %%s was %%s: %%s',
            number, worker, outcome, left(error, 200)) FROM ledger.attempts WHERE job_id = %(job)s
        UNION ALL
        SELECT opened, 5, format('lease %%s of %%s is opened', lease, name)
        FROM leases WHERE lease IN (SELECT new_lease FROM moves WHERE job = %(job)s)
        UNION ALL
        SELECT ended, 5, format('lease %%s of %%s is ended by %%s', lease, name, ended_by)
        FROM leases WHERE ended IS NOT NULL
            AND lease IN (SELECT new_lease FROM moves WHERE job = %(job)s)
    ) AS story ORDER BY t, rank
"""


@dataclass(frozen=True)
class Example:
    """One violation.

    Attributes:
        job: which job; None when it is of no single one.
        detail: what is wrong.
        story: what is known of the job, a line each, with seconds since the run began.
    """

    job: str | None
    detail: str
    story: list[str]


@dataclass(frozen=True)
class Violation:
    """All violations of one kind: how many, and the first of them."""

    count: int
    examples: list[Example]


@dataclass
class Report:
    """The checker's answer.

    Attributes:
        counts: the run's figures, see `tests.chaos.counts`.
        violations: by kind; none when the promise was kept.
    """

    counts: Counts
    violations: dict[str, Violation] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether the promise was kept."""
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        """All of it, for machines: what `json.dumps` takes."""
        return asdict(self)

    def text(self) -> str:
        """All of it, for people."""
        lines = [listed(self.counts)]
        for kind, violation in self.violations.items():
            lines.append(f"\nVIOLATION {kind}: {violation.count}")
            for example in violation.examples:
                lines.append(f"  job {example.job}: {example.detail}")
                lines += [f"    {line}" for line in example.story]
        if self.is_clean:
            lines.append("\n0 violations")
        return "\n".join(lines)


def violation(evidence: Evidence, rows: list[tuple[Any, ...]], examples: int) -> Violation:
    """What a rule found, with the stories of the first `examples`."""
    told = [Example(job, detail, story(evidence, job)) for job, detail in rows[:examples]]
    return Violation(len(rows), told)


def story(evidence: Evidence, job: str | None) -> list[str]:
    """Everything that is known of `job`."""
    if job is None:
        return []
    evidence.cursor.execute(_STORY, {"job": job})
    began = evidence.clock.began
    return [f"{float(t) - began:+10.3f}  {what}" for t, what in evidence.cursor.fetchall()]


def listed(figures: Mapping[str, Any]) -> str:
    """Figures by name, a line each, for people."""
    return "\n".join(f"{name}: {_brief(value)}" for name, value in figures.items())


def _brief(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        return "".join(f"\n  {name}: {_brief(inner)}" for name, inner in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
