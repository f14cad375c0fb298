from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.ledger.database import Ledger
from worker.ledger.durability import durability_faults, mended
from worker.ledger.safety import faults_of, trusted


def test_a_server_as_it_comes_keeps_what_it_commits(ledger: Ledger) -> None:
    (row,) = ledger.execute(
        "SELECT count(*) AS known FROM pg_settings WHERE name IN"
        " ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names')"
    )
    assert row.known == 4
    assert faults_of({"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}) == []


@pytest.mark.parametrize(
    ("level", "standbys", "fault"),
    [
        ("off", "", "synchronous_commit = off: an acknowledged commit can be lost"),
        ("off", "s1", "synchronous_commit = off: an acknowledged commit can be lost"),
        ("local", "", None),
        ("local", "s1", "before a synchronous standby has it"),
        ("remote_write", "", None),
        ("remote_write", "s1", "before a synchronous standby has it on its disk"),
        ("on", "s1", None),
        ("remote_apply", "s1", None),
    ],
)
def test_each_level_of_synchronous_commit_is_judged(
    level: str, standbys: str, fault: str | None
) -> None:
    faults = faults_of({"synchronous_commit": level, "synchronous_standby_names": standbys})

    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_what_a_crash_can_corrupt_is_a_fault(name: str) -> None:
    (fault,) = faults_of({name: "off"})

    assert fault.startswith(f"Postgres has {name} = off")
    assert fault.endswith(
        "or, if its storage is safe without, set WORKER_TRUST_POSTGRES_STORAGE=true."
    )


def test_a_storage_that_is_trusted_vouches_for_itself_and_for_no_lazy_commit() -> None:
    managed = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

    (fault,) = faults_of(managed, is_pooled=True, trusts_storage=True)

    assert fault.startswith("Postgres has synchronous_commit = off")
    assert str(trusted(managed)).startswith("Postgres has fsync = off and full_page_writes = off; ")
    assert trusted({"fsync": "on", "full_page_writes": "on"}) is None


@pytest.mark.parametrize("level", ["off", "local", "remote_write", "on"])
def test_what_a_session_mends_is_no_fault_and_is_told(
    ledger: Ledger, open_ledger: Callable[..., Ledger], level: str
) -> None:
    (row,) = ledger.execute("SELECT current_database() AS name")
    ledger.execute(f'ALTER DATABASE "{row.name}" SET synchronous_commit = {level}')
    door = open_ledger()

    assert not [fault for fault in durability_faults(door) if "synchronous" in fault]
    assert (mended(door) is None) is (level == "on")
    assert level in (mended(door) or level)
