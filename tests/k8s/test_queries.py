"""KEDA's and the exporter's SQL, on a real ledger: what it answers, and by which index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from tests.k8s.manifests import Manifests, part
from tests.k8s.rendering import Combination, Rendered, as_shipped
from tests.ledger import given
from worker.jobs.queues import lists_of
from worker.ledger.database import Ledger
from worker.settings import Settings

WITH_EXPORTER = Combination("dev", ("monitoring",))
Ask = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.database_url.get_secret_value(), connections=4)
    yield ledger
    ledger.close()


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    """Ask as KEDA does: by a connection of its own, read only."""
    connection = psycopg2.connect(database_url)
    connection.set_session(readonly=True, autocommit=True)

    def one(query: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    yield one
    connection.close()


@pytest.fixture
def staging(rendered: dict[Combination, Rendered]) -> Manifests:
    return rendered[as_shipped("staging")].manifests


def keda_query(manifests: Manifests, name: str, trigger: str) -> str:
    spec = manifests.one("ScaledObject", name)["spec"]
    (found,) = [each for each in spec["triggers"] if each["name"] == trigger]
    return str(found["metadata"]["query"])


def exporter_queries(manifests: Manifests) -> list[str]:
    (found,) = [e for e in manifests.of("ConfigMap") if "queries.yaml" in e["data"]]
    text = part(found, "data")["queries.yaml"]
    return re.findall(r"^  query: \|\n((?:    .*\n)+)", text, re.MULTILINE)


def crowd(ledger: Ledger, state: str, number: int, **more: str) -> None:
    """Rows of one state, straight into the table."""
    values = {
        "dispatch_seq": "n", "dispatched_at": "now()", "lease": "NULL", "list": "'celery'",
        "run_at": "NULL", "finished_at": "NULL",
    } | more  # fmt: skip
    ledger.execute(
        f"INSERT INTO ledger.jobs (id, task, queue, priority, state, fingerprint, envelope, body,"
        f" {', '.join(values)})"
        f" SELECT '{state}-' || n, 't', 'celery', 0, '{state}', '', '{{}}', '',"
        f" {', '.join(values.values())} FROM generate_series(1, {number}) AS n"
    )


def test_keda_counts_what_wants_a_slot_of_its_queue(
    ledger: Ledger, ask: Ask, staging: Manifests
) -> None:
    # Given, in the queue `celery`: three waiting, of several priorities, two running, one that is
    # due in five seconds and one in an hour; and in `mail` one,
    for priority in (0, 5, 9):
        given.enqueued(ledger, priority=priority)
    given.claimed(ledger, "r1", "r2")
    given.enqueued(ledger, "soon", delay=5.0)
    given.enqueued(ledger, "late", delay=3600.0)
    given.enqueued(ledger, "letter", queue="mail")

    # then each ScaledObject sees its own.
    assert ask(keda_query(staging, "worker", "jobs")) == [(6.0,)]
    assert ask(keda_query(staging, "worker-mail", "jobs")) == [(1.0,)]


def test_keda_knows_every_list_of_a_queue(staging: Manifests, ask: Ask) -> None:
    lists = keda_query(staging, "worker", "wait").partition("SELECT COALESCE")[0].rstrip()

    found = {row[0] for row in ask(f"{lists} SELECT name FROM lists")}

    assert found == set(lists_of("celery"))


def test_keda_hears_how_long_the_next_in_line_has_waited(
    ledger: Ledger, ask: Ask, staging: Manifests
) -> None:
    query = keda_query(staging, "worker", "wait")
    assert ask(query) == [(0.0,)]
    crowd(ledger, "queued", 3, dispatched_at="now() - n * interval '1 minute'")
    # Of the same list the first by number counts, which is the next to be popped.
    assert ask(query)[0][0] == pytest.approx(60, abs=20)
    crowd_list = "'celery' || chr(6) || chr(22) || '9'"
    ledger.execute(f"UPDATE ledger.jobs SET list = {crowd_list} WHERE id = 'queued-3'")
    assert ask(query)[0][0] == pytest.approx(180, abs=20)


def test_an_empty_ledger_wants_nobody(ledger: Ledger, ask: Ask, staging: Manifests) -> None:
    given.connected(ledger)

    assert ask(keda_query(staging, "worker", "jobs")) == [(0.0,)]


@pytest.fixture
def full(ledger: Ledger) -> Ledger:
    """A ledger with a past, a backlog and a future."""
    crowd(ledger, "succeeded", 60_000, finished_at="now()")
    crowd(ledger, "failed", 2_000, finished_at="now() - interval '1 hour'")
    crowd(ledger, "queued", 20_000)
    crowd(ledger, "scheduled", 2_000, run_at="now() + interval '1 day'")
    crowd(ledger, "running", 100, lease="'a lease'")
    ledger.execute("ANALYZE ledger.jobs")
    return ledger


@pytest.mark.parametrize("trigger", ["jobs", "wait"])
def test_keda_goes_by_the_indexes(trigger: str, full: Ledger, ask: Ask, staging: Manifests) -> None:
    rows = ask("EXPLAIN (ANALYZE, FORMAT TEXT) " + keda_query(staging, "worker", trigger))
    plan = "\n".join(row[0] for row in rows)

    assert "Seq Scan on jobs" not in plan, plan
    # Nor does it read a backlog to its end.
    assert max(map(int, re.findall(r"actual.*rows=(\d+)", plan)), default=0) <= 2_000, plan


@pytest.mark.parametrize("combination", [WITH_EXPORTER], ids=str)
def test_the_exporter_goes_by_the_indexes_and_answers(
    combination: Combination, full: Ledger, ask: Ask, rendered: dict[Combination, Rendered]
) -> None:
    queues, totals = exporter_queries(rendered[combination].manifests)
    for query in (queues, totals):
        plan = "\n".join(row[0] for row in ask("EXPLAIN " + query))
        assert "Seq Scan on jobs" not in plan, plan

    ((queue, waiting, _),) = ask(queues)
    assert (queue, waiting) == ("celery", 10_000)
    assert ask(totals) == [(100, 0, 0, 0)]
