"""Doorbells and producers follow the master, as Sentinel names it."""

from __future__ import annotations

import json
from typing import cast

import pytest
import redis

from tests.broker.test_transport import Rows, make_app
from tests.sentinels import Group
from worker.broker.address import read
from worker.broker.doorbells import Doorbells
from worker.broker.transport import ADDRESS
from worker.errors import BrokerUnavailable
from worker.jobs.job import Ring
from worker.runtime.install import SENTINEL_TRANSPORT


def ids_in(group: Group, name: str) -> set[str]:
    """The jobs whose doorbells are in a list of the master."""
    with redis.Redis.from_url(group.master.url) as client:
        entries = cast(list[bytes], client.lrange(name, 0, -1))
    return {json.loads(entry)["id"] for entry in entries}


def test_doorbells_ask_for_the_master_and_ask_again_when_it_is_one_no_more(group: Group) -> None:
    # Given doorbells with a connection to the master
    bells = Doorbells(group.url)
    for number in range(2):  # the first may have to load the script
        bells.ring([Ring("a", "followed", number)])
    assert bells._kept is not None and bells._kept._place.connection is not None
    old = group.master

    # When another becomes the master, and the old one its replica
    group.fail_over()
    bells.ring([Ring("b", "followed", 2)])

    # Then what is rung is rung there
    assert group.master is not old
    assert "b" in ids_in(group, "followed")
    bells.close()


def test_a_producer_follows_the_master(group: Group) -> None:
    rows = Rows()
    app = make_app(group.broker_url, rows)
    options = {**app.conf.broker_transport_options, ADDRESS: read(group.url)}
    app.conf.update(broker_transport=SENTINEL_TRANSPORT, broker_transport_options=options)
    app.send_task("tests.elsewhere", task_id="a", queue="produced")
    old = group.master

    group.fail_over()
    app.send_task("tests.elsewhere", task_id="b", queue="produced")

    assert group.master is not old
    assert [job.id for job in rows.jobs] == ["a", "b"]
    assert "b" in ids_in(group, "produced")
    app.close()


@pytest.mark.parametrize(
    "change",
    [("ledger-master", "other"), ("sentinel_password=", "sentinel_password=x")],
    ids=["name", "password"],
)
def test_without_a_sentinel_that_knows_the_master_redis_is_away(
    group: Group, change: tuple[str, str]
) -> None:
    bells = Doorbells(group.url.replace(*change))

    with pytest.raises(BrokerUnavailable, match="no Sentinel answers and names a living master"):
        bells.ping()

    bells.close()
