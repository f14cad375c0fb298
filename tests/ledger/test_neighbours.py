"""The ledger beside others: their tables, their Alembic, their search path, their rights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from alembic import command
from alembic.config import Config

from tests.ledger import given
from tests.ledger.test_migrate import as_setting
from tests.servers import Databases
from worker.errors import ConfigurationError, SchemaMissing, SchemaOutdated, SchemaTaken
from worker.jobs.states import State
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.migrate import _config, check_schema, head, migrate, second_ledger
from worker.ledger.namespace import SCHEMA, in_schema
from worker.ledger.read import read
from worker.settings import Settings

#: Another program's tables under our names, as Django, Alembic and the like make them.
THEIRS = """
    CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY);
    INSERT INTO public.alembic_version VALUES ('0003');
    CREATE TABLE public.jobs (id serial PRIMARY KEY, title text, list text, body text);
    INSERT INTO public.jobs (title) VALUES ('welder');
    CREATE TABLE public.django_migrations (id serial PRIMARY KEY, app text, name text);
    CREATE TABLE public.groups (name text);
    CREATE SEQUENCE public.dispatch_seq
"""
_ENV = """
from alembic import context
from sqlalchemy import create_engine

with create_engine({url!r}).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
_FIRST = """
from alembic import op
revision, down_revision = {revision!r}, {down!r}
def upgrade():
    op.execute({sql!r})
"""


@pytest.fixture
def address(databases: Databases) -> str:
    """A database with nothing in it."""
    address = databases.new()
    sql(address, "DROP SCHEMA ledger CASCADE")
    return address


@pytest.fixture
def open_ledger() -> Iterator[Callable[..., Ledger]]:
    opened: list[Ledger] = []

    def open_one(address: str, schema: str = SCHEMA) -> Ledger:
        opened.append(Ledger(as_setting(address), schema=schema))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


def sql(address: str, statements: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute(statements)
        rows = list(cursor.fetchall()) if cursor.description else []
    connection.close()
    return rows


def old(address: str, revision: str, place: str = "public") -> None:
    """The tables as a version before 0004 made them, wherever the path led."""
    ledger = Ledger(as_setting(address), waits_for_ever=True)
    with ledger.transaction() as connection:
        config = _config()
        config.attributes |= {"connection": connection, "schema": place}
        command.upgrade(config, revision)
    ledger.close()
    if revision == "0003":
        sql(address, f"COMMENT ON TABLE \"{place}\".alembic_version IS '0003 runs code from 0002'")


def relations(address: str, place: str) -> set[str]:
    query = f"SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('{place}')"
    return {str(name) for (name,) in sql(address, query)}


def lives(ledger: Ledger, job_id: str = "a") -> None:
    """A job's whole way goes by, by prepared statements and by others."""
    check_schema(ledger)
    given.enqueued(ledger, job_id)
    (claimed,) = claim(ledger, given.lease(ledger), [job_id])
    assert finish(ledger, [given.success(claimed.fence)]).granted == {job_id}
    job = read(ledger, job_id)
    assert job is not None
    assert job.state is State.SUCCEEDED
    Leadership("keeper", "me", 10.0).take(ledger)


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_the_tables_of_an_older_version_move(
    address: str, open_ledger: Callable[..., Ledger], revision: str
) -> None:
    # Given the tables of an older version in public, with a job
    old(address, revision)
    sql(
        address,
        "INSERT INTO jobs (id, task, queue, list, priority, state, dispatch_seq, fingerprint,"
        " envelope, body) VALUES ('old', 't', 'celery', 'celery', 0, 'queued',"
        " nextval('dispatch_seq'), '', '{}', '[]')",
    )
    with pytest.raises(SchemaOutdated, match="run `worker migrate`"):
        check_schema(open_ledger(address))

    # When it is migrated, then all of it is in our schema, and nothing of ours is in public
    assert migrate(as_setting(address)) == head()
    assert relations(address, "public") == set()
    ledger = open_ledger(address)
    job = read(ledger, "old")
    assert job is not None
    assert job.state is State.QUEUED
    lives(ledger)
    assert migrate(as_setting(address)) == head()


def test_who_could_read_the_old_tables_can_read_the_moved_ones(
    address: str, poor: str, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a role for KEDA's queries, and one for workers, that do not own the tables
    old(address, "0003")
    sql(address, "GRANT SELECT ON jobs TO poor")
    migrate(as_setting(address))
    assert sql(poor, "SELECT count(*) FROM ledger.jobs") == [(0,)]


def test_others_tables_are_left_alone(address: str, open_ledger: Callable[..., Ledger]) -> None:
    # Given another program's alembic_version, at what could be a revision of ours, and jobs
    sql(address, THEIRS)
    before = relations(address, "public")
    with pytest.raises(SchemaMissing, match="in its schema 'ledger'; run `worker migrate`"):
        check_schema(open_ledger(address))

    # When the ledger is made, then both are there
    assert migrate(as_setting(address)) == head()
    lives(open_ledger(address))
    assert relations(address, "public") == before
    assert sql(address, "SELECT version_num FROM public.alembic_version") == [("0003",)]
    assert sql(address, "SELECT title FROM public.jobs") == [("welder",)]


@pytest.mark.parametrize("theirs", ["'f00d'", "'f00d'), ('0003'"])
def test_old_tables_move_and_a_strangers_versions_stay(
    address: str, open_ledger: Callable[..., Ledger], theirs: str
) -> None:
    # Given old tables of ours, and an alembic_version that an app has stamped as its own
    old(address, "0003")
    sql(
        address,
        f"DELETE FROM public.alembic_version; INSERT INTO public.alembic_version VALUES ({theirs})",
    )

    assert migrate(as_setting(address)) == head()

    assert {"alembic_version", "alembic_version_pkc"} == relations(address, "public")
    assert sql(address, "SELECT version_num FROM public.alembic_version") == [("f00d",)]
    lives(open_ledger(address))


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_an_apps_own_alembic_works_before_and_after_ours(
    address: str, open_ledger: Callable[..., Ledger], tmp_path: Path, first: str
) -> None:
    # Given an app with a table of jobs, and migrations of its own with numbers like ours
    app = Config()
    app.set_main_option("script_location", str(tmp_path).replace("%", "%%"))
    (tmp_path / "env.py").write_text(_ENV.format(url=as_setting(address)))
    versions = tmp_path / "versions"
    versions.mkdir()
    made = "CREATE TABLE jobs (id int)"
    (versions / "1.py").write_text(_FIRST.format(revision="0001", down=None, sql=made))
    changed = "ALTER TABLE jobs ADD title text"
    (versions / "2.py").write_text(_FIRST.format(revision="0002", down="0001", sql=changed))

    # When both migrate, in either order, and the app once more
    if first == "theirs":
        command.upgrade(app, "0001")
    assert migrate(as_setting(address)) == head()
    command.upgrade(app, "0001")
    assert migrate(as_setting(address)) == head()
    command.upgrade(app, "head")

    # Then each has its own
    assert sql(address, "SELECT version_num FROM public.alembic_version") == [("0002",)]
    assert sql(address, "SELECT title FROM public.jobs") == []
    lives(open_ledger(address))


def test_a_path_set_by_others_leads_nobody_astray(
    address: str, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a role whose path begins with a schema that has tables of our names
    sql(address, "CREATE SCHEMA evil;" + THEIRS.replace("public.", "evil."))
    tricky = f"{address}?options=-csearch_path%3Devil"
    assert migrate(as_setting(tricky)) == head()
    lives(open_ledger(tricky))
    assert sql(address, "SELECT title FROM evil.jobs") == [("welder",)]


def test_old_tables_are_found_where_the_path_led(
    address: str, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a version that worked in a schema of the role's path
    sql(address, 'CREATE SCHEMA "Shop"; ' + THEIRS)
    old(address, "0003", "Shop")
    elsewhere = f"{address}?options=-csearch_path%3D%22Shop%22"

    assert migrate(as_setting(elsewhere)) == head()

    assert relations(address, '"Shop"') == set()
    lives(open_ledger(address))


def test_a_schema_of_another_name_holds_it_all(
    address: str, open_ledger: Callable[..., Ledger]
) -> None:
    # Given two ledgers in one database, one in a schema whose name is a word of SQL
    assert migrate(as_setting(address), "order") == head()
    assert relations(address, "ledger") == set()
    assert migrate(as_setting(address)) == head()

    # Then neither sees the other's jobs
    one, other = open_ledger(address, "order"), open_ledger(address)
    lives(one, "one")
    lives(other, "other")
    assert read(one, "other") is None
    assert read(other, "one") is None
    with pytest.raises(SchemaMissing, match="in its schema 'third'"):
        check_schema(open_ledger(address, "third"))


@pytest.mark.parametrize("table", ["alembic_version", "jobs", "groups"])
def test_a_schema_that_is_anothers_is_refused(
    address: str, open_ledger: Callable[..., Ledger], table: str
) -> None:
    sql(address, f"CREATE SCHEMA ledger; CREATE TABLE ledger.{table} (version_num text, id text)")
    told = rf"\({table}\); name a schema .* WORKER_SCHEMA"
    with pytest.raises(SchemaTaken, match=told):
        migrate(as_setting(address))
    with pytest.raises(SchemaTaken, match=told):
        check_schema(open_ledger(address))
    assert len(relations(address, "ledger") & {"alembic_version", "jobs", "groups"}) == 1


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("CREATE SCHEMA ledger; CREATE TYPE ledger.jobs AS ENUM ()", "", "type .jobs. already"),
        ("", "DELETE FROM ledger.alembic_version", ".dispatch_seq. already exists"),
        ("", "INSERT INTO ledger.alembic_version VALUES ('0003')", "more than one head"),
    ],
    ids=["a type of our name", "no revision", "two revisions"],
)
def test_what_is_not_as_it_was_left_is_told_in_a_sentence(
    address: str, before: str, after: str, told: str
) -> None:
    if before:
        sql(address, before)
    else:
        migrate(as_setting(address))
        sql(address, after)
    with pytest.raises(ConfigurationError, match=f"not as celery-ledger left it: .*{told}"):
        migrate(as_setting(address))


def test_two_ledgers_are_not_made_one(address: str, open_ledger: Callable[..., Ledger]) -> None:
    # Given a ledger, and an older version's that its `worker migrate` made afterwards
    migrate(as_setting(address))
    old(address, "0003")
    with pytest.raises(ConfigurationError, match="'ledger' and 'public' both hold a ledger"):
        migrate(as_setting(address))
    assert "jobs" in relations(address, "public")
    told = second_ledger(open_ledger(address))
    assert told is not None
    assert "The schema 'public' holds a second ledger" in told


def test_one_ledger_is_no_second_one(address: str, open_ledger: Callable[..., Ledger]) -> None:
    sql(address, THEIRS)
    assert second_ledger(open_ledger(address)) is None
    migrate(as_setting(address))
    assert second_ledger(open_ledger(address)) is None


@pytest.fixture
def poor(address: str) -> str:
    """The address for a role that may do nothing but connect."""
    sql(
        address,
        """
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'poor') THEN
                CREATE ROLE poor LOGIN PASSWORD 'poor';
            END IF;
        END $$;
        REVOKE ALL ON SCHEMA public FROM PUBLIC
        """,
    )
    return "postgresql://poor:poor@" + address.rpartition("@")[2]


def test_a_role_that_may_make_schemas_needs_nothing_in_public(
    address: str, poor: str, open_ledger: Callable[..., Ledger]
) -> None:
    sql(address, f'GRANT CREATE ON DATABASE "{address.rpartition("/")[2]}" TO poor')
    assert migrate(as_setting(poor)) == head()
    lives(open_ledger(poor))


def test_a_schema_made_by_an_administrator_does(
    address: str, poor: str, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a role that may make no schema: it is told what to ask for
    with pytest.raises(ConfigurationError, match="'ledger' is missing") as told:
        migrate(as_setting(poor))
    asked = str(told.value).split("`")[1]
    assert asked == 'CREATE SCHEMA "ledger" AUTHORIZATION "poor"'

    # When an administrator does so, then it works
    sql(address, asked)
    assert migrate(as_setting(poor)) == head()
    lives(open_ledger(poor))


def test_a_schema_without_rights_is_told(
    address: str, poor: str, open_ledger: Callable[..., Ledger]
) -> None:
    sql(address, "CREATE SCHEMA ledger")
    with pytest.raises(ConfigurationError, match="not the role's to create tables in") as told:
        migrate(as_setting(poor))
    sql(address, str(told.value).split("`")[1])
    assert migrate(as_setting(poor)) == head()

    sql(address, "REVOKE USAGE ON SCHEMA ledger FROM poor")
    with pytest.raises(ConfigurationError, match="may not use the schema 'ledger'"):
        check_schema(open_ledger(poor))


@pytest.mark.parametrize(
    ("given_name", "is_good"),
    [
        ("ledger", True), ("shop_ledger", True), ("_x1", True), ("a" * 63, True), ("order", True),
        ("a" * 64, False), ("public", False), ("pg_ledger", False), ("information_schema", False),
        ("Ledger", False), ("1ledger", False), ("", False), ("a b", False), ('a"b', False),
        ("a;drop", False), ("lédger", False), ("a\n", False),
    ],
)  # fmt: skip
def test_the_name_of_a_schema_is_a_plain_one(given_name: str, is_good: bool) -> None:
    stores: dict[str, Any] = {"database_url": "postgresql://h/d", "redis_url": "redis://h"}
    if is_good:
        assert Settings.load(ledger_schema=given_name, **stores).ledger_schema == given_name
    else:
        with pytest.raises(ConfigurationError, match="WORKER_SCHEMA is "):
            Settings.load(ledger_schema=given_name, **stores)


def test_only_names_of_tables_are_renamed() -> None:
    statement = "SELECT nextval('ledger.dispatch_seq'), my_ledger.x, 'a ledger.' FROM ledger.jobs"
    assert in_schema(statement, "shop") == (
        "SELECT nextval('\"shop\".dispatch_seq'), my_ledger.x, 'a ledger.' FROM \"shop\".jobs"
    )
    assert in_schema(statement, SCHEMA) is statement
    assert Settings.model_fields["ledger_schema"].default == SCHEMA
