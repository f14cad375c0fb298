"""A version runs on its neighbours' schemas: the one before, and the next, where that allows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.ledger import given
from tests.ledger.test_migrate import as_setting
from tests.ledger.test_schema import emptied, ledger_at, upgrade
from tests.servers import Databases
from worker.errors import SchemaNewer, SchemaOutdated
from worker.jobs.states import State
from worker.ledger import migrate as migrate_module
from worker.ledger.change import cancel, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.finish import finish
from worker.ledger.migrate import OLDEST_SCHEMA, _config, check_schema, head, migrate
from worker.ledger.read import read_list
from worker.ledger.rescue import rescue
from worker.ledger.retention import drop_old
from worker.ledger.schema import metadata

_MIGRATIONS = Path(migrate_module.__file__).parent / "migrations"
_NEXT = """
from alembic import op

revision = "next"
down_revision = {head!r}
RUNS_CODE_FROM = {runs!r}


def upgrade():
    op.execute("CREATE TABLE IF NOT EXISTS expanded ()")
"""
_COLUMNS = """
    SELECT table_name, column_name, is_nullable = 'NO' AND column_default IS NULL
    FROM information_schema.columns
    WHERE table_schema = 'ledger' AND table_name <> 'alembic_version'
"""

#: Whether a row must give a value, by table and column.
Columns = dict[tuple[str, str], bool]
Next = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def as_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Next:
    """Be, in a block, the version after this one, whose schema runs code from a revision on."""

    @contextmanager
    def play(runs: str) -> Iterator[None]:
        migrations = tmp_path / "migrations"
        shutil.copytree(_MIGRATIONS, migrations, dirs_exist_ok=True)
        (migrations / "versions" / "next.py").write_text(_NEXT.format(head=head(), runs=runs))

        def next_config() -> Config:
            made = Config()
            made.set_main_option("script_location", str(migrations).replace("%", "%%"))
            return made

        with monkeypatch.context() as patch:
            patch.setattr(migrate_module, "_config", next_config)
            yield

    return play


@pytest.fixture
def made_by_next(as_next: Next, database_url: str) -> Callable[[str], str]:
    """The test's database, migrated by the next version."""

    def make(runs: str) -> str:
        with as_next(runs):
            assert migrate(as_setting(database_url)) == "next"
        return database_url

    return make


def line() -> list[str]:
    """Every revision, from the first on."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def runs_code_from(revision: str) -> str:
    script = ScriptDirectory.from_config(_config()).get_revision(revision)
    return str(script.module.RUNS_CODE_FROM)


def columns(ledger: Ledger) -> Columns:
    return {(table, column): needed for table, column, needed in ledger.execute(_COLUMNS)}


@pytest.fixture(scope="module")
def columns_of(databases: Databases) -> dict[str, Columns]:
    """The columns of each revision's schema."""
    ledger = ledger_at(emptied(databases))
    made = {}
    for revision in line():
        upgrade(ledger, revision)
        made[revision] = columns(ledger)
    ledger.close()
    return made


def test_a_newer_schema_that_runs_this_code_is_taken(made_by_next: Callable[[str], str]) -> None:
    # Given a database that the next version has migrated, and which runs this one
    address = made_by_next(head())

    # Then this version runs on it, and its migration changes nothing and says what it found
    ledger = ledger_at(address)
    assert check_schema(ledger) == "next"
    assert finish(ledger, [given.success(given.running(ledger, "a"))]).granted == {"a"}
    assert migrate(as_setting(address)) == "next"
    assert ledger.execute("SELECT version_num FROM ledger.alembic_version") == [("next",)]
    ledger.close()


def test_a_newer_schema_that_runs_older_code_too_runs_this(
    made_by_next: Callable[[str], str],
) -> None:
    ledger = ledger_at(made_by_next(line()[0]))
    check_schema(ledger)
    ledger.close()


@pytest.mark.parametrize("runs", ["next", "", "never heard of"])
def test_a_newer_schema_that_does_not_run_this_code_is_refused(
    made_by_next: Callable[[str], str], runs: str
) -> None:
    address = made_by_next(runs)

    ledger = ledger_at(address)
    with pytest.raises(SchemaNewer, match="at next, which this code"):
        check_schema(ledger)
    ledger.close()
    with pytest.raises(SchemaNewer, match="deploy the version that made it"):
        migrate(as_setting(address))


def test_a_newer_schema_that_says_nothing_is_refused(
    made_by_next: Callable[[str], str],
) -> None:
    # Given a database that was restored without its comments
    ledger = ledger_at(made_by_next(head()))
    ledger.execute("COMMENT ON TABLE ledger.alembic_version IS NULL")

    with pytest.raises(SchemaNewer):
        check_schema(ledger)
    ledger.close()


def test_a_migration_that_is_done_says_again_what_its_schema_runs(database_url: str) -> None:
    ledger = ledger_at(database_url)
    ledger.execute("COMMENT ON TABLE ledger.alembic_version IS NULL")

    migrate(as_setting(database_url))

    query = "SELECT obj_description('ledger.alembic_version'::regclass)"
    assert ledger.execute(query) == [(f"{head()} runs code from {runs_code_from(head())}",)]
    ledger.close()


def test_an_older_schema_is_taken_as_far_back_as_this_code_runs(databases: Databases) -> None:
    ledger = ledger_at(emptied(databases))
    taken = []
    for revision in line():
        upgrade(ledger, revision)
        try:
            check_schema(ledger)
            taken.append(revision)
        except SchemaOutdated as exc:
            assert f"at {revision}, this code needs {head()}; run `worker migrate`" in str(exc)
    assert taken == line()[line().index(OLDEST_SCHEMA) :]
    ledger.close()


def test_the_next_version_runs_on_this_schema_where_it_says_so(
    as_next: Next, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_at(database_url)
    with as_next(head()):
        check_schema(ledger)
        monkeypatch.setattr(migrate_module, "OLDEST_SCHEMA", "next")
        with pytest.raises(SchemaOutdated):
            check_schema(ledger)
    ledger.close()


def test_a_jobs_whole_life_goes_by_on_the_oldest_schema(databases: Databases) -> None:
    # Given the oldest schema that this code says it runs on
    ledger = ledger_at(emptied(databases))
    upgrade(ledger, OLDEST_SCHEMA)

    # Then jobs are enqueued, dispatched, run, rescued, cancelled, replayed, listed and deleted
    given.enqueued(ledger, "late", delay=600)
    given.make_due(ledger, "late")
    assert [ring.id for ring in dispatch_due(ledger, None)] == ["late"]
    (late,) = claim(ledger, given.lease(ledger), ["late"])
    assert finish(ledger, [given.failure(late.fence)]).granted == {"late"}
    assert [job.id for job in read_list(ledger, state=State.FAILED)] == ["late"]
    assert replay(ledger, "late").id == "late"
    cancel(ledger, "late", "by hand")
    given.expire(ledger, given.running(ledger, "orphan").lease)
    assert rescue(ledger, None, 3).leases == 1
    given.age(ledger, "finished_at", 90 * 86400.0, "late")
    assert drop_old(ledger, None, succeeded_days=1, failed_days=1) == 1
    ledger.close()


def test_the_oldest_schema_has_all_that_this_code_names(columns_of: dict[str, Columns]) -> None:
    # If this fails, this code cannot run on OLDEST_SCHEMA: use the new column a version later, or
    # raise OLDEST_SCHEMA, and new workers wait for the migration
    named = {
        (table.name, column.name) for table in metadata.tables.values() for column in table.columns
    }
    assert named - columns_of[OLDEST_SCHEMA].keys() == set()


def test_a_schema_keeps_all_that_the_code_it_runs_knows(columns_of: dict[str, Columns]) -> None:
    # If this fails, RUNS_CODE_FROM names code that reads what is gone, or cannot fill what is new
    for revision in line():
        for code in line()[line().index(runs_code_from(revision)) : line().index(revision)]:
            kept, known = columns_of[revision], columns_of[code]
            assert known.keys() - kept.keys() == set(), f"code {code} on schema {revision}"
            assert not [name for name in kept.keys() - known.keys() if kept[name]]


def test_this_version_runs_with_its_neighbours() -> None:
    # One line, so that "older" and "newer" mean something
    assert ScriptDirectory.from_config(_config()).get_heads() == [head()]
    assert OLDEST_SCHEMA in line()[-2:]
    for revision in line():
        assert runs_code_from(revision) in line()[: line().index(revision) + 1]
