"""The history checker finds nothing in an honest run, and each planted violation by its name."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.chaos import (
    audit,
    checker,
    planted,
    planted_attempts,
    planted_canvas,
    planted_logs,
    planted_runs,
    planted_waiting,
    rules,
)
from tests.chaos.attempt_rules import ABOUT
from tests.chaos.checker import check
from tests.chaos.clock import Clock
from tests.chaos.counts import outages
from tests.chaos.history import Journal
from tests.chaos.honest import play_honestly
from tests.chaos.planted import Plant
from tests.chaos.staged import Stage
from tests.servers import Databases

HERE = Path(__file__).parent
PLANTS = planted.PLANTS
# Each of these has enlisted its own.
assert planted_attempts and planted_canvas and planted_logs and planted_runs and planted_waiting
#: What the judge is made of.
JUDGE = (
    "history", "audit", "attempt_rules", "believed", "canvas_rules", "checker", "clock", "counts",
    "evidence", "report", "rules", "waiting_rules",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared_url(databases: Databases) -> str:
    """One database for all of these runs, in turn: to make one takes longer than most of them."""
    return databases.new()


@pytest.fixture
def stage(tmp_path: Path, shared_url: str) -> Iterator[Stage]:
    """A run that begins."""
    stage = Stage(tmp_path, shared_url)
    yield stage
    stage.close()
    empty(shared_url)


def empty(url: str) -> None:
    """Leave nothing of a run in its database, the audit's lines included."""
    waits = "-c lock_timeout=30s"  # for a session that a test has left open: not for ever
    with (
        psycopg2.connect(audit.dsn(url), options=waits) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables"
            " WHERE schemaname IN ('ledger', 'public') AND tablename <> 'alembic_version'"
        )
        tables = [name for (name,) in cursor.fetchall()]
        # Without triggers, the audit's among them; thirty times as fast as TRUNCATE, which makes
        # new files. A replica checks no foreign keys.
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(";".join(f"DELETE FROM {table}" for table in tables))
    connection.close()


def test_later_steps_that_have_ended_wait_for_nothing(stage: Stage) -> None:
    # Given a job that failed, whose message names jobs that have ended too
    steps = [stage.accepted("noop") for _ in range(3)]
    for job in steps:
        stage.succeed("w1", job, "noop")
    body, *header = map(planted_waiting.step, steps)
    chord = {"subtask_type": "chord", "kwargs": {"header": header, "body": body}, "options": {}}
    failed = stage.accepted("failing")
    stage.fail("w1", failed, "failing")
    planted_waiting.say(stage, failed, [[], {}, {"chain": [chord]}])

    report = check(stage.folder, stage.url)

    assert report.violations == {}


def test_an_honest_run_is_clean(stage: Stage) -> None:
    play_honestly(stage)

    report = check(stage.folder, stage.url)

    assert report.is_clean, report.text()


@pytest.mark.parametrize(("plant", "names"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_a_planted_violation_is_caught_by_its_name(
    stage: Stage, plant: Plant, names: frozenset[str]
) -> None:
    stage.succeed("w1", stage.accepted("noop"), "noop")
    plant(stage)

    report = check(stage.folder, stage.url)

    assert set(report.violations) == names, report.text()


def test_what_a_process_was_about_to_start_when_it_was_stopped_is_forgiven(stage: Stage) -> None:
    begun, dropped = (stage.claim("stopped", stage.accepted("sleep")) for _ in range(2))
    stage.die("stopped")
    stage.rescue()
    for name in ("next-1", "next-2"):
        stage.rerun(name, "sleep")
    stage.stop("stopped", 60)
    stage.end("stopped", stage.start("stopped", begun, "sleep"))

    assert dropped.id not in (stage.folder / "execution-stopped-1.jsonl").read_text()
    assert check(stage.folder, stage.url).is_clean


def test_what_the_threads_of_a_stopped_process_were_about_to_start_is_forgiven(
    stage: Stage,
) -> None:
    fences = [stage.claim("stopped", stage.accepted("sleep")) for _ in range(ABOUT)]
    stage.die("stopped")
    stage.rescue()
    for number in range(ABOUT):
        stage.rerun(f"next-{number}", "sleep")
    stage.stop("stopped", 60)
    for fence in fences:
        stage.end("stopped", stage.start("stopped", fence, "sleep"))

    assert check(stage.folder, stage.url).is_clean


def test_every_rule_has_a_plant() -> None:
    planted = {name for _, names in PLANTS if len(names) == 1 for name in names}

    assert planted == {*rules.RULES, checker.DISHONEST_LOG}


def test_a_violation_is_told_with_the_jobs_story(stage: Stage) -> None:
    job = stage.accepted("noop")
    stage.retry("w1", job, "noop")
    stage.fail("w1", job, "noop")

    (example,) = check(stage.folder, stage.url).violations["wrong-end"].examples

    assert (example.job, example.detail) == (
        job,
        "noop is failed (ValueError: no), expected succeeded",
    )
    told = "\n".join(example.story)
    for moment in ("producer-p1.jsonl: accepted", "(nothing) -> queued", "running -> scheduled",
                   "attempt 1 of w1 was retried: not yet", "starts", "retried", "raised",
                   "scheduled -> queued, attempt 1, lost 0", "running -> failed, attempt 2",
                   "of w1 is opened"):  # fmt: skip
        assert moment in told
    assert example.story == sorted(example.story, key=lambda line: float(line.split()[0]))


def test_only_so_many_examples_are_told(stage: Stage) -> None:
    for _ in range(3):
        stage.accepted("noop")

    lost = check(stage.folder, stage.url, examples=2).violations["lost"]

    assert (lost.count, len(lost.examples)) == (3, 2)


def test_the_limit_of_losses_is_the_runs(stage: Stage) -> None:
    job = stage.accepted("dying")
    for loss in (1, 2):
        stage.lose_child("w1", job, "dying", poison=loss == 2)

    assert check(stage.folder, stage.url, lost_limit=2).is_clean


def test_the_counts_of_an_honest_run(stage: Stage) -> None:
    play_honestly(stage)

    counts = check(stage.folder, stage.url).counts

    assert counts["jobs"] == {
        "accepted": 26, "unsure": 4, "refused": 1, "cancelled": 2, "found": 28,
    }  # fmt: skip
    assert counts["by_kind"]["noop"] == {"cancelled": 1, "failed": 2, "succeeded": 7}
    assert counts["by_kind"]["dying"] == {"failed": 1}
    attempts = counts["attempts"]
    assert (attempts["rescued"], attempts["results_dropped"]) == (2, 2)  # a zombie's, a cancelled's
    assert attempts["claimed"] == attempts["executed"] == 34
    assert attempts["by_outcome"] == {
        "cancelled": 1, "failed": 3, "lost": 6, "released": 1, "replaced": 1, "retried": 2,
    }  # fmt: skip
    assert counts["executions_per_job"] == {"1": 15, "2": 8, "3": 1}
    assert counts["faults"] == {"kill-worker": 1}
    assert (
        counts["kills"]["threads"]
        == counts["kills"]["total"]
        == {
            "kills": 1,
            "unstarted": {"min": 60, "median": 60, "max": 60},
            "unflushed": {"min": 70, "median": 70, "max": 70},
        }
    )
    json.dumps(counts)


def test_the_rate_is_taken_while_producers_are_at_it_and_no_store_is_away(stage: Stage) -> None:
    nemesis, load = stage.nemesis, Journal(stage.folder / "producer-p2.jsonl")
    stage.producer.note("accepted", t=5.0, job="before", kind="noop", key=None)
    load.note("begins", t=99.0)
    for tick in range(4001):
        if not 1000 <= tick < 2500:  # nothing is accepted from 110 s to 125 s
            jobs = 1 if tick < 3500 else 2
            for job in range(jobs):
                load.note(
                    "accepted", t=100 + tick / 100, job=f"{tick}-{job}", kind="noop", key=None
                )
    nemesis.note("outage", t=110.0, store="postgres")
    nemesis.note("back", t=125.0, store="postgres")

    rates = check(stage.folder, stage.url, examples=0).counts["accepted_per_second"]

    assert rates["windows"] == 7  # three before the outage, four after it
    assert (rates["min"], rates["max"]) == pytest.approx((100, 200), abs=0.5)


def test_outages_of_several_stores_are_told_as_one() -> None:
    def told(event: str, wall: float, store: str) -> dict[str, object]:
        return {"event": event, "wall": wall, "store": store}

    assert outages(
        [
            told("outage", 1, "redis"),
            told("outage", 2, "postgres"),
            told("back", 3, "redis"),
            told("back", 4, "postgres"),
            told("outage", 9, "redis"),
        ]
    ) == [(1, 4), (9, float("inf"))]


def test_the_clock_believes_the_reading_that_was_not_held_up() -> None:
    clock = Clock.of(
        {"event": "clock", "t": t, "wall": 1000 + t - held_up}
        for t, held_up in [(1.0, 0.0), (2.0, 0.3), (3.0, 0.001)]
    )

    assert clock.wall(2.5) == pytest.approx(1002.5)


@pytest.mark.parametrize("name", JUDGE)
def test_the_judge_imports_nothing_of_what_it_judges(name: str) -> None:
    known = {f"tests.chaos.{module}" for module in JUDGE}
    for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module
            inside = node.module == "tests.chaos"
            modules = [
                f"tests.chaos.{alias.name}" if inside else node.module for alias in node.names
            ]
        for module in modules:
            assert module.partition(".")[0] not in ("worker", "importlib", "celery", "kombu")
            assert module in known or not module.startswith("tests")


def test_the_command_says_what_it_found(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.succeed("w1", stage.accepted("noop"), "noop")

    assert checker.main([str(stage.folder), stage.url]) == 0
    assert "0 violations" in capsys.readouterr().out

    stage.accepted("noop")
    assert checker.main([str(stage.folder), stage.url, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["jobs"]["accepted"] == 2
    assert told["violations"]["lost"]["count"] == 1

    assert checker.main([str(stage.folder), stage.url]) == 1
    assert "VIOLATION lost: 1" in capsys.readouterr().out


def test_without_a_history_or_an_audit_there_is_nothing_to_judge(
    tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checker.main([str(tmp_path / "nowhere"), database_url]) == 2

    nemesis = Journal(tmp_path / "nemesis.jsonl")
    nemesis.note("begin", fault="f", target="")
    assert checker.main([str(tmp_path), database_url]) == 2  # no clock

    nemesis.note("clock", wall=1.0)
    assert checker.main([str(tmp_path), database_url]) == 2  # no audit
    assert capsys.readouterr().err.count("There is nothing to judge") == 3


def test_the_audit_may_be_installed_again(stage: Stage) -> None:
    audit.install(stage.url)

    stage.succeed("w1", stage.accepted("noop"), "noop")

    assert check(stage.folder, stage.url).is_clean
