"""`worker check`: what is set, and whether it would work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis as redis_client

from tests.cli.said import Command
from worker.cli.effective import without_secrets
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer


def test_all_is_well(process: Command, database_url: str) -> None:
    said = process("check", WORKER_HTTP_SIGNING_SECRET="sesame")

    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert f"DATABASE_URL={without_secrets(database_url)}" in lines
    assert "WORKER_HTTP_SIGNING_SECRET=***" in lines
    assert "WORKER_CONCURRENCY=64" in lines
    assert "sesame" not in said.out
    checks = [line for line in lines if line.startswith("✓")]
    assert len(checks) == 8
    assert not [line for line in lines if line.startswith("✗")]


def test_as_json_it_is_one_object(process: Command) -> None:
    told = process("check", "--json", WORKER_TASKS="examples.shop.nowhere").json

    assert told["ok"] is False
    assert told["settings"]["WORKER_QUEUE"] == "celery"
    (bad,) = [check for check in told["checks"] if not check["ok"]]
    assert bad["check"] == "tasks"
    assert bad["says"].startswith("WORKER_TASKS names 'examples.shop.nowhere', which cannot be")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("def broken(:", "SyntaxError"),
        ("raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("import sys; sys.exit(3)", "ended the process that imported them, with exit code 3"),
        ("import os; os._exit(7)", "ended the process that imported them, with exit code 7"),
        ("print('hello')", ""),
    ],
)
def test_the_tasks_are_imported_as_a_worker_would(
    process: Command, tmp_path: Path, source: str, sentence: str
) -> None:
    (tmp_path / "chores.py").write_text(source)

    said = process("check", WORKER_TASKS="chores")

    last = said.out.splitlines()[-1]
    if not sentence:
        assert (said.code, last) == (0, "✓ The task modules can be imported: chores.")
    else:
        assert said.code == 2
        assert last.startswith("✗ ") and sentence in last


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
def test_a_module_that_shadows_the_package_is_named(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)

    said = here("check")

    assert said.code == 2
    assert f"✗ {os.path.realpath(tmp_path / name)} shadows the package `worker`" in said.out


def test_a_folder_without_init_shadows_nothing(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path)
    assert here("check").code == 0


def test_every_wrong_setting_is_in_one_report(here: Command) -> None:
    said = here("check", DATABASE_URL="mysql://u:sesame@h/x", WORKER_POOL="gevent")

    assert said.code == 2
    assert said.out.splitlines() == [
        "✗ DATABASE_URL is mysql://***@h/x; expected postgresql://user:password@host:port/name.",
        "✗ WORKER_POOL is 'gevent'; input should be 'threads', 'prefork' or 'solo'.",
    ]


def test_what_is_away_is_3(here: Command) -> None:
    said = here(
        *("check", "--json"),
        DATABASE_URL="postgresql://u:sesame@127.0.0.1:1/x",
        REDIS_URL="redis://:sesame@127.0.0.1:1/0",
    )

    assert said.code == 3
    bad = {check["check"]: check for check in said.json["checks"] if not check["ok"]}
    assert bad.keys() == {"postgres", "redis"}
    assert "Connection refused" in bad["postgres"]["says"]
    assert said.json["settings"]["REDIS_URL"] == "redis://127.0.0.1:1/0"


def test_a_wrong_setting_goes_before_what_is_away(here: Command) -> None:
    said = here("check", REDIS_URL="redis://127.0.0.1:1/0", WORKER_TASKS="nowhere")
    assert said.code == 2


def test_what_may_lose_jobs_is_a_fault(
    here: Command, own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    own_postgres.options = {**own_postgres.options, "fsync": "off", "synchronous_commit": "off"}
    own_postgres.restart()
    with redis_client.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.lpush("ledger:quarantine", "{}")

    said = here("check", REDIS_URL=own_redis.url, DATABASE_URL=own_postgres.url)

    assert said.code == 2
    assert "✓ Postgres 18 answers at" in said.out
    assert "✗ Postgres has fsync = off: a crash of the machine loses or corrupts" in said.out
    assert "✓ Postgres has synchronous_commit = off; every session of this service" in said.out
    assert "✗ Redis has maxmemory-policy = allkeys-lru" in said.out
    assert "! The quarantine holds 1 entry" in said.out

    trust = {"WORKER_TRUST_POSTGRES_STORAGE": "true"}
    said = here("check", DATABASE_URL=own_postgres.url, **trust)
    assert "! Postgres has fsync = off; its storage is trusted to keep every" in said.out
    assert "✗ Postgres" not in said.out


def test_an_option_that_libpq_does_not_know_is_ignored_and_named(
    process: Command, database_url: str
) -> None:
    said = process("check", DATABASE_URL=f"{database_url}?no_such_option=sesame")
    assert said.code == 0, said.out
    assert said.err.count("which are ignored: no_such_option") == 1
    assert "sesame" not in said.out + said.err


def test_an_option_of_redis_that_nobody_knows_is_one_finding_of_many(here: Command) -> None:
    said = here("check", "--json", REDIS_URL="redis://127.0.0.1:1/0?no_such_option=1")

    assert said.code == 2
    (redis, *_) = [check for check in said.json["checks"] if check["check"] == "redis"]
    assert "no_such_option" in redis["says"] and not redis["ok"]
    assert {"postgres", "schema", "tasks"} <= {check["check"] for check in said.json["checks"]}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg2://u:pw@h:5432/n?password=pw", "postgresql://h:5432/n"),
        ("rediss://:pw@[::1]:6379/0", "rediss://[::1]:6379/0"),
        (
            "sentinel://:pw@h:1;sentinel://u:pw@i/0?master_name=m&sentinel_password=pw",
            "sentinel://h:1;sentinel://i/0",
        ),
        ("sentinel://:pw;pw@h/0", "sentinel://h/0"),
        ("postgresql:///n?host=/run", "postgresql:///run/n"),
        ("postgresql+psycopg2://u:pw@/n?host=a,b&port=1,2", "postgresql://a:1,b:2/n"),
        ("postgresql://u:12/pw@h/n", "postgresql://***"),
        ("postgresql://u:12?pw@h/n", "postgresql://***"),
        ("postgresql://u:12#pw@h/n", "postgresql://***"),
        ("postgresql://u:p@w@h/n", "postgresql://h/n"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(here: Command) -> None:
    said = here("check", WORKER_CONCURENCY="4", WORKER_TASK="sesame", WORKER_CLASS="gthread")

    assert said.code == 2
    assert (
        "✗ WORKER_CONCURENCY is no setting, and is ignored; did you mean WORKER_CONCURRENCY?"
        in said.out
    )
    assert "✗ WORKER_TASK is no setting, and is ignored; did you mean WORKER_TASKS?" in said.out
    assert "✓ WORKER_CLASS is no setting, and is ignored." in said.out
    assert "sesame" not in said.out


def test_what_kubernetes_sets_for_a_service_is_no_stray(here: Command) -> None:
    variables = ("SERVICE_HOST", "PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP_ADDR", "MAIL_PORT")
    said = here("check", **{f"WORKER_{name}": "tcp://10.0.0.1:80" for name in variables})
    assert said.code == 0
    assert "is no setting" not in said.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("postgres:", "postgres:wrong"), "password authentication failed"),
        (("/test_", "/nowhere_"), "does not exist"),
        (("postgres:", "nobody:"), "authentication failed"),
    ],
    ids=["password", "database", "role"],
)
def test_what_postgres_refuses_is_the_operators(
    here: Command, database_url: str, change: tuple[str, str], told: str
) -> None:
    url = database_url.replace(*change)
    for command in (("check",), ("migrate",), ("job", "list")):
        said = here(*command, DATABASE_URL=url)
        assert said.code == 2, command
        assert "Postgres refuses what DATABASE_URL gives: " in said.out + said.err, command
        assert told in said.out + said.err


def test_a_postgres_that_takes_no_writes_is_named(here: Command, database_url: str) -> None:
    # As a standby that is reached by mistake.
    options = "?options=-c%20default_transaction_read_only%3Don"
    said = here("check", DATABASE_URL=f"{database_url}{options}")
    assert said.code == 3
    assert "✗ This Postgres takes no writes: it is a standby, or set read-only; let" in said.out
