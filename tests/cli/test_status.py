"""`worker status`: who is there, what waits, what is wrong."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.cli.said import Command
from worker.client import Client
from worker.flows.status import NO_KEEPER
from worker.keeper.keeper import STANDBY_SECONDS
from worker.ledger import status as status_module
from worker.ledger.leader import Leadership
from worker.ledger.lease import open_lease
from worker.runtime.keepers import KeeperWatch


def lead(client: Client, holder: str = "a:1:x", seconds: float = 60.0) -> Leadership:
    leadership = Leadership(status_module.LEADER, holder, seconds)
    assert leadership.take(client.ledger)
    return leadership


def codes(said: Any) -> list[str]:
    return [problem["code"] for problem in said.json["problems"]]


def test_all_is_well(here: Command, client: Client) -> None:
    lead(client)
    Leadership(status_module.LEADER, "b:2:y", 60.0).stand_by(client.ledger, STANDBY_SECONDS)
    open_lease(client.ledger, "w1@here", ["celery"], 60.0, slots=4)
    client.enqueue("probe.echo")

    said = here("status")

    assert said.code == 0, said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert ["a:1:x", "leads"] in lines and ["b:2:y", "stands", "by"] in lines
    assert ["w1@here", "4", "0", "0", "s", "ago", "celery", "ready"] in lines
    assert ["celery", "1", "0", "s", "0", "yes"] in lines
    assert lines[-1] == ["All", "is", "well."]
    told = here("status", "--json").json
    assert (told["ok"], told["problems"], told["quarantine"]) == (True, [], 0)


def test_no_keeper_no_worker_for_a_queue(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", queue="mail")
    client.enqueue("probe.echo", queue="later", delay=600)

    said = here("status", "--json")

    assert said.code == 1
    assert codes(said) == ["no_keeper", "no_worker"]
    assert "`worker run --queues mail` does" in said.json["problems"][1]["says"]
    assert NO_KEEPER in here("status").out


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("UPDATE ledger.leaders SET expires_at = clock_timestamp() - interval '1 s'", "no_keeper"),
        ("UPDATE ledger.leaders SET expires_at = clock_timestamp() + interval '1 h'", "no_keeper"),
        (
            "UPDATE ledger.workers SET renewed_at = clock_timestamp() - interval '9 s',"
            " expires_at = clock_timestamp() - interval '1 s' WHERE name = 'w2'",
            "lease_expired",
        ),
        (
            "UPDATE ledger.workers SET renewed_at = clock_timestamp() + interval '1 h',"
            " expires_at = clock_timestamp() + interval '1 h' WHERE name = 'w2'",
            "clock",
        ),
        ("UPDATE ledger.jobs SET created_at = created_at - interval '5 min'", "late"),
        ("UPDATE ledger.jobs SET suspicion = 1", "suspects"),
        (
            "UPDATE ledger.jobs SET state = 'scheduled',"
            " run_at = clock_timestamp() - interval '1 min'",
            "overdue",
        ),
        (
            "UPDATE ledger.jobs SET state = 'scheduled', run_at = clock_timestamp()"
            " + interval '5 s', error = 'no living worker knows the task x'",
            "unknown_task",
        ),
    ],
)
def test_what_is_wrong_is_said(here: Command, client: Client, given: str, wrong: str) -> None:
    lead(client, seconds=5.0)
    for name in ("w1", "w2"):
        open_lease(client.ledger, name, ["celery"], 60.0)
    client.enqueue("probe.echo")
    client.ledger.execute(given)

    said = here("status", "--json")

    assert (said.code, codes(said)) == (1, [wrong])


def test_a_quarantine_is_said(here: Command, client: Client) -> None:
    lead(client)
    client.doorbells._redis.lpush("ledger:quarantine", "{}")

    said = here("status", "--json")

    assert (said.code, codes(said)) == (1, ["quarantine"])


def test_a_store_that_is_away_is_three(here: Command, client: Client) -> None:
    lead(client)

    said = here("status", REDIS_URL="redis://127.0.0.1:1/0")
    assert said.code == 3
    assert "a:1:x" in said.out and "Redis" in said.out
    assert here("status", DATABASE_URL="postgresql://127.0.0.1:1/x").code == 3


def test_check_warns_that_no_keeper_is_alive(here: Command, client: Client) -> None:
    said = here("check")
    assert f"! {NO_KEEPER}" in said.out and said.code == 0

    lead(client)
    assert "A keeper leads." in here("check").out


def test_a_worker_says_once_that_no_keeper_is_alive_and_once_that_one_is_back(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watch = KeeperWatch(client.ledger, grace=0.0)

    watch.look()
    watch.look()
    lead(client)
    watch.look()
    watch.look()

    assert [record.message for record in caplog.records] == [NO_KEEPER, "A keeper is alive again."]


def test_a_keeper_that_resigns_is_not_listed(client: Client) -> None:
    leadership = lead(client)
    leadership.stand_by(client.ledger, 60.0)

    leadership.resign(client.ledger)

    assert client.status().status.keepers == ()
