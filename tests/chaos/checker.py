"""The history checker: holds what was said, done and written in a chaos run against each other.

`python -m tests.chaos.checker HISTORY_FOLDER DATABASE_URL [--json] [--lost-limit 3]` prints counts
and violations; it exits with 1 on any violation, 0 when there are none, 2 when there is nothing to
judge. The database is the run's, with the audit of `tests.chaos.audit` in it since before the
first job; it is only read, all that is made in it is temporary.

Nothing of `worker` is imported, by this module or those it uses: the judge must not share the
judged one's errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import psycopg2

from tests.chaos import attempt_rules, canvas_rules, counts, evidence, rules
from tests.chaos.audit import dsn
from tests.chaos.report import Example, Report, Violation, violation

#: What is wrong with the logs themselves, by the name that the rules' findings have.
DISHONEST_LOG = "dishonest-log"
#: Losses that make a job poison, by the service's default.
LOST_LIMIT = 3
#: Violations of a kind whose story is told.
EXAMPLES = 5


def check(
    history: Path, url: str, *, lost_limit: int = LOST_LIMIT, examples: int = EXAMPLES
) -> Report:
    """Judge one run.

    Args:
        history: the folder of its history files.
        url: its database, audited.
        lost_limit: losses that make a job poison.
        examples: of each kind of violation, how many are told with their story.

    Raises:
        ValueError: there is no history, or it cannot be tied to the wall clock.
        psycopg2.Error: the database is away, or was not audited.
    """
    connection = psycopg2.connect(dsn(url), application_name="chaos checker")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '128MB'; SET jit = off")
            found = evidence.load(history, cursor)
            parameters = {
                "limit": lost_limit,
                "slack": rules.SLACK,
                "killers": rules.KILLERS,
                "resultless": rules.RESULTLESS,
                "retriers": rules.RETRIERS,
                "thaw": attempt_rules.THAW,
                "about": attempt_rules.ABOUT,
                "bound": canvas_rules.BOUND,
            }
            cursor.execute(rules.TABLES, parameters)
            report = Report(counts.count(found))
            for kind, rule in rules.RULES.items():
                cursor.execute(rule, parameters)
                if rows := cursor.fetchall():
                    report.violations[kind] = violation(found, rows, examples)
        if found.faults:
            told = [Example(None, fault, []) for fault in found.faults[:examples]]
            report.violations[DISHONEST_LOG] = Violation(len(found.faults), told)
        return report
    finally:
        connection.close()


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser("tests.chaos.checker", description="Judge a chaos run.")
    parser.add_argument("history", type=Path, help="the folder of the history files")
    parser.add_argument("url", help="the address of the run's database")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--lost-limit", type=int, default=LOST_LIMIT)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    options = parser.parse_args(argv)
    try:
        report = check(
            options.history,
            options.url,
            lost_limit=options.lost_limit,
            examples=options.examples,
        )
    except (ValueError, OSError, psycopg2.Error) as exc:
        print(f"There is nothing to judge: {exc}", file=sys.stderr)
        return 2
    print(json.dumps(report.to_json(), indent=2) if options.json else report.text())
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
