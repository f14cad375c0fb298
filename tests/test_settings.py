from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker.errors import InvalidSettings
from worker.settings import Settings, environment_with, variable_of

GOOD = {"DATABASE_URL": "postgresql://u:s3cret@db:5432/ledger", "REDIS_URL": "redis://:s3cret@r/0"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with the two addresses and no other setting."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_two_addresses_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.load()

    assert settings.redis_url.get_secret_value() == GOOD["REDIS_URL"]
    assert (settings.queue, settings.pool, settings.lost_limit) == ("celery", "threads", 3)


def test_every_fault_is_in_one_report(environment: pytest.MonkeyPatch) -> None:
    # Given four faults
    environment.delenv("DATABASE_URL")
    environment.setenv("REDIS_URL", "http://s3cret@r")
    environment.setenv("WORKER_CONCURRENCY", "none")
    environment.setenv("WORKER_TASKS", "good, not-good")

    with pytest.raises(InvalidSettings) as raised:
        Settings.load()

    # Then each has its line, with the variable, what was given, and what is expected
    report = str(raised.value)
    assert len(report.splitlines()) == 4
    assert "DATABASE_URL is not set; expected Postgres, the ledger" in report
    assert "REDIS_URL is http://***@r; expected redis://" in report
    assert "WORKER_CONCURRENCY is 'none'; " in report
    assert "'not-good' is no module name" in report
    assert "s3cret" not in report


def test_an_empty_address_is_told_as_what_it_is(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "")
    with pytest.raises(InvalidSettings, match="DATABASE_URL is ''; expected postgresql://"):
        Settings.load()


@pytest.mark.parametrize(
    ("variable", "bad"),
    [
        ("DATABASE_URL", "mysql://u:s3cret@db/ledger"),
        ("DATABASE_URL", "postgresql://u:s3cret@db:port/ledger"),
        ("DATABASE_URL", "s3cret"),
        ("REDIS_URL", "unix://:s3cret@/run/redis.sock"),
        ("REDIS_URL", "redis://:s3cret@r:99999/0"),
        ("REDIS_URL", "redis://:s3cret@r:1;redis://:s3cret@s:1"),
        ("REDIS_URL", "redis://:a[s3cret]b@r/0"),
        ("DATABASE_URL", "postgresql://u:s3cret\u2100@db/ledger"),
        ("REDIS_URL", "sentinel://:a[s3cret]b@r/0?master_name=m"),
        ("REDIS_URL", "sentinel://:s3cret@r:26379/0"),
        ("REDIS_URL", "sentinel://:s3cret@r/0?master_name="),
        ("REDIS_URL", "sentinel://:s3;cret@r/0?master_name=m"),
        ("REDIS_URL", "sentinel://r;sentinel://:s3cret@s:port/0?master_name=m"),
    ],
)
def test_a_bad_address_is_told_without_its_secret(
    environment: pytest.MonkeyPatch, variable: str, bad: str
) -> None:
    environment.setenv(variable, bad)

    with pytest.raises(
        InvalidSettings, match=rf"^{variable} is (\w+://\w;)?(\w+://)?\*\*\*"
    ) as raised:
        Settings.load()

    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__  # a traceback would print what was given


@pytest.mark.parametrize(
    "url",
    [
        "rediss://:pw@r:6380/0?ssl_ca_certs=/ca.pem",
        "sentinel://:pw@r/0?master_name=m",
        "sentinel://:pw@r:26379;sentinel://:pw@s:26379/0?master_name=m&sentinel_password=pw",
    ],
)
def test_redis_may_be_behind_tls_and_sentinels(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("REDIS_URL", url)

    assert Settings.load().redis_url.get_secret_value() == url


def test_no_secret_is_ever_printed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORKER_HTTP_SIGNING_SECRET", "s3cret")
    settings = Settings.load()

    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert "s3cret" not in settings.model_dump_json()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_is_read_as_psycopg2(
    environment: pytest.MonkeyPatch, scheme: str
) -> None:
    environment.setenv("DATABASE_URL", f"{scheme}://u:p%40@db:5432/ledger?sslmode=require")

    assert (
        Settings.load().database_url.get_secret_value()
        == "postgresql+psycopg2://u:p%40@db:5432/ledger?sslmode=require"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.load().queue = "other"  # type: ignore[misc] # it is read-only


def test_overrides_win_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORKER_QUEUE", "a")

    assert Settings.load(queue="b").queue == "b"
    assert Settings.load(otherwise={"queue": lambda: pytest.fail("asked in vain")}).queue == "a"


def test_what_is_not_set_is_taken_from_otherwise(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("REDIS_URL")

    settings = Settings.load(otherwise={"redis_url": lambda: "redis://other/1"})

    assert settings.redis_url.get_secret_value() == "redis://other/1"


def test_an_override_that_cannot_be_is_told_by_its_variable() -> None:
    with pytest.raises(InvalidSettings, match=r"WORKER_LEASE_SECONDS is 0\.1"):
        Settings.load(lease_seconds=0.1)


def test_task_modules_are_separated_by_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORKER_TASKS", " a.b, c ,,")

    assert Settings.load().tasks == ("a.b", "c")


def test_an_isolated_worker_runs_its_suspect_in_a_child_process() -> None:
    assert Settings.load(isolated="1:pod").pool == "prefork"
    assert Settings.load(isolated="1:pod", pool="solo").pool == "solo"


@pytest.mark.parametrize(
    ("pool", "slots"), [("threads", 64), ("prefork", len(os.sched_getaffinity(0))), ("solo", 1)]
)
def test_how_many_jobs_run_at_once_follows_from_the_pool(pool: str, slots: int) -> None:
    assert Settings.load(pool=pool).concurrency == slots
    assert Settings.load(pool=pool, concurrency=3).concurrency == 3


def test_only_who_was_started_for_suspects_is_isolated(environment: pytest.MonkeyPatch) -> None:
    assert not Settings.load().isolated
    environment.setenv("WORKER_ISOLATED", "")
    assert not Settings.load().isolated
    environment.setenv("WORKER_ISOLATED", "true")
    with pytest.raises(InvalidSettings, match=r"^WORKER_ISOLATED is 'true'; "):
        Settings.load()


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_has_a_variable_and_says_what_it_is(field: str) -> None:
    info = Settings.model_fields[field]

    assert info.description and not info.description.endswith(".")
    assert variable_of(field) == variable_of(field).upper()
    # pydantic's models have a `schema` of their own.
    named = f"WORKER_{field.upper()}" if field != "ledger_schema" else "WORKER_SCHEMA"
    assert variable_of(field) in GOOD or variable_of(field) == named


def test_a_subprocess_gets_this_environment_and_more(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORKER_QUEUE", "a")

    made = environment_with(WORKER_ISOLATED="1:pod")

    assert made["WORKER_QUEUE"] == "a"
    assert made["WORKER_ISOLATED"] == "1:pod"


@pytest.mark.parametrize("variable", [*GOOD, "WORKER_HTTP_SIGNING_SECRET"])
def test_a_secret_may_stand_in_a_file(
    environment: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    secret = {**GOOD, "WORKER_HTTP_SIGNING_SECRET": "s3cret"}[variable]
    file = tmp_path / "secret"
    file.write_text(secret + "\n")
    environment.delenv(variable, raising=False)
    environment.setenv(f"{variable}_FILE", str(file))

    given: dict[str, Any] = {_field_of(variable): secret}
    assert Settings.load() == Settings.load(**given)


def test_a_secret_in_two_places_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(GOOD["DATABASE_URL"])
    environment.setenv("DATABASE_URL_FILE", str(file))

    with pytest.raises(InvalidSettings) as raised:
        Settings.load()

    assert str(raised.value) == (
        "DATABASE_URL and DATABASE_URL_FILE are both set; set one of them."
    )


def test_a_file_that_cannot_be_read_is_told_with_every_other_fault(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.delenv("DATABASE_URL")
    environment.setenv("DATABASE_URL_FILE", str(tmp_path / "none"))

    with pytest.raises(InvalidSettings) as raised:
        Settings.load()
    missing = (
        f"DATABASE_URL_FILE is {str(tmp_path / 'none')!r}, which cannot be read:"
        " No such file or directory."
    )
    assert str(raised.value) == missing

    environment.setenv("WORKER_CONCURRENCY", "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    environment.delenv("REDIS_URL")
    environment.setenv("REDIS_URL_FILE", str(tmp_path / "bytes"))
    with pytest.raises(InvalidSettings) as raised:
        Settings.load()
    told = str(raised.value).splitlines()
    assert len(told) == 3
    assert missing in told
    assert (
        f"REDIS_URL_FILE is {str(tmp_path / 'bytes')!r}, which cannot be read: it is no text."
        in told
    )


def test_a_bad_secret_of_a_file_is_not_shown(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("mysql://u:s3cret@db/x")
    environment.delenv("DATABASE_URL")
    environment.setenv("DATABASE_URL_FILE", str(tmp_path / "secret"))

    with pytest.raises(
        InvalidSettings, match=r"^DATABASE_URL is mysql://\*\*\*@db/x; expected"
    ) as raised:
        Settings.load()

    assert "s3cret" not in str(raised.value)


def _field_of(variable: str) -> str:
    (field,) = (field for field in Settings.model_fields if variable_of(field) == variable)
    return field
