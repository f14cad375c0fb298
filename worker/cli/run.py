"""`worker run`: a Celery worker on the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from worker.broker.doorbells import Doorbells
from worker.cli.strays import warn
from worker.errors import BrokerUnavailable, LedgerUnavailable, SchemaMissing, SchemaOutdated
from worker.ledger.database import Ledger
from worker.ledger.migrate import check_schema
from worker.settings import Settings


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("-Q", "--queues", help="Queues to consume, separated by commas.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 1000), help="Jobs run at once.")
@click.option(
    "-P", "--pool", type=click.Choice(["threads", "prefork", "solo"]), help="How jobs are run."
)
@click.option("-n", "--hostname", help="This worker's name; %h is the host's.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def run(
    queues: str | None,
    concurrency: int | None,
    pool: str | None,
    hostname: str | None,
    celery_options: tuple[str, ...],
) -> None:
    """Run a worker until SIGTERM or Ctrl-C; every other option is Celery's own.

    While a store is away it waits, also at its start; for the tables WORKER_SCHEMA_WAIT_SECONDS.

    Exit codes: 0 drained, 2 the schema or a setting is wrong, 70 it was wedged.
    """
    chosen: dict[str, Any] = {"pool": pool} if pool else {}
    settings = Settings.load(**chosen)
    warn()
    _preflight(settings)
    from worker.runtime.app import create_app  # Celery takes half a second to import
    from worker.runtime.install import durability_of
    from worker.runtime.outcome import exit_code

    app = create_app(settings)
    # Mingle and gossip exchange revokes and clocks, which the ledger has; they cost a second.
    argv = ["worker", "--without-mingle", "--without-gossip", "--loglevel", settings.log_level]
    # A configured pool wins over `--pool prefork`, which Celery cannot tell from its default.
    app.conf.worker_pool = settings.pool
    argv += ["--pool", settings.pool]
    argv += ["--concurrency", str(concurrency or settings.concurrency)]
    argv += ["--queues", queues] if queues else []
    argv += ["--hostname", hostname] if hostname else []
    start: Callable[[list[str]], object] = app.start  # its stubs have it that it never returns
    try:
        start([*argv, *celery_options])
    except click.UsageError as exc:  # its own context names a command that is not there
        message = f"{exc.format_message()} `celery worker --help` lists Celery's own options."
        raise click.UsageError(message, click.get_current_context()) from None
    process = durability_of(app).process  # Celery drops its worker's exit code
    raise click.exceptions.Exit(exit_code(process.controller.exitcode) if process else 0)


def _preflight(settings: Settings) -> None:
    """Say in one sentence, before Celery starts, what is wrong or is waited for.

    Raises:
        ConfigurationError: this code does not run on the schema, and waiting does not help.
    """
    ledger = Ledger(
        settings.database_url.get_secret_value(),
        connections=1,
        connect_timeout=settings.connect_timeout_seconds,
        schema=settings.ledger_schema,
        trusts_storage=settings.trust_postgres_storage,
    )
    try:
        check_schema(ledger)
    except LedgerUnavailable as exc:
        click.echo(f"{exc} Waiting for it; is DATABASE_URL right?", err=True)
    except (SchemaMissing, SchemaOutdated) as exc:
        if not settings.schema_wait_seconds:
            raise
        click.echo(f"{exc} Waiting {settings.schema_wait_seconds:g} s for it at most.", err=True)
    finally:
        ledger.close()
    doorbells = Doorbells(settings.redis_url.get_secret_value(), settings.connect_timeout_seconds)
    try:
        doorbells.ping()
    except BrokerUnavailable as exc:
        click.echo(f"{exc} Waiting for it; is REDIS_URL right?", err=True)
    finally:
        doorbells.close()
