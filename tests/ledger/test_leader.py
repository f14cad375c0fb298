from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.ledger import given
from worker.errors import LeaseLost
from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership

FIRST, SECOND = Leadership("keeper", "first", 600), Leadership("keeper", "second", 600)


def end_lead(ledger: Ledger) -> None:
    ledger.execute("UPDATE ledger.leaders SET expires_at = clock_timestamp() - interval '1 second'")


def test_one_leads_and_extends(ledger: Ledger) -> None:
    assert FIRST.take(ledger)
    assert not SECOND.take(ledger)
    assert FIRST.take(ledger)


def test_of_many_at_once_one_leads(ledger: Ledger, open_ledger: Callable[..., Ledger]) -> None:
    doors = [open_ledger() for _ in range(10)]

    found = given.all_at_once(
        [
            lambda door=door, n=number: Leadership("keeper", f"h{n}", 600).take(door)  # type: ignore[misc] # a lambda's default
            for number, door in enumerate(doors)
        ]
    )

    assert sum(found) == 1


def test_another_takes_over_once_the_lead_is_over(ledger: Ledger) -> None:
    FIRST.take(ledger)
    end_lead(ledger)

    assert SECOND.take(ledger)
    assert not FIRST.take(ledger)


def test_who_resigns_lets_another_lead_at_once(ledger: Ledger) -> None:
    FIRST.take(ledger)

    SECOND.resign(ledger)  # not its to give
    assert not SECOND.take(ledger)
    FIRST.resign(ledger)
    assert SECOND.take(ledger)


def test_two_kinds_of_lead_are_strangers(ledger: Ledger) -> None:
    FIRST.take(ledger)

    assert Leadership("cron", "second", 600).take(ledger)


def test_a_duty_without_the_lead_is_stopped_in_its_transaction(ledger: Ledger) -> None:
    FIRST.take(ledger)
    with ledger.transaction() as connection:
        FIRST.check(connection)
    end_lead(ledger)

    with pytest.raises(LeaseLost, match="first no longer leads"), ledger.transaction() as duty:
        duty.execute(text("INSERT INTO ledger.queues (name) VALUES ('work of the duty')"))
        FIRST.check(duty)

    assert ledger.execute("SELECT * FROM ledger.queues") == []


def test_nobody_takes_over_in_the_middle_of_a_duty(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a duty under way, whose leader stops for longer than its lead lasts
    leader = Leadership("keeper", "first", 0.05)
    assert leader.take(ledger)
    door = open_ledger()
    order: list[str] = []
    with ledger.transaction() as duty:
        leader.check(duty)
        given.until(
            lambda: ledger.execute(
                "SELECT 1 FROM ledger.leaders WHERE expires_at < clock_timestamp()"
            )
        )

        # When another one takes the lead
        def take() -> None:
            assert SECOND.take(door)
            order.append("taken over")

        successor = threading.Thread(target=take)
        successor.start()
        given.until(lambda: given.waits_for_a_lock(ledger) or order)
        duty.execute(text("INSERT INTO ledger.queues (name) VALUES ('work of the duty')"))
        assert order == []

    # Then it does so after the duty is over, and the next duty of the first is stopped
    given.join([successor])
    assert order == ["taken over"]
    with pytest.raises(LeaseLost), ledger.transaction() as late:
        leader.check(late)
