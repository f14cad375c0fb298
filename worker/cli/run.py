"""`worker run`: a Celery worker on the ledger."""

from __future__ import annotations

from typing import Any

import click

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable, LedgerUnavailable
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

    While a store is away it waits, also at its start.

    Exit codes: 0 drained, 2 the schema or a setting is wrong, 70 it was wedged.
    """
    chosen: dict[str, Any] = {"pool": pool} if pool else {}
    settings = Settings.load(**chosen)
    _preflight(settings)
    from worker.runtime.app import create_app  # Celery takes half a second to import

    app = create_app(settings)
    # Mingle and gossip exchange revokes and clocks, which the ledger has; they cost a second.
    argv = ["worker", "--without-mingle", "--without-gossip", "--loglevel", settings.log_level]
    # A configured pool wins over `--pool prefork`, which Celery cannot tell from its default.
    app.conf.worker_pool = settings.pool
    argv += ["--pool", settings.pool]
    argv += ["--concurrency", str(concurrency or settings.concurrency)]
    argv += ["--queues", queues] if queues else []
    argv += ["--hostname", hostname] if hostname else []
    app.worker_main([*argv, *celery_options])


def _preflight(settings: Settings) -> None:
    """Say in one sentence, before Celery starts, what is wrong or is waited for.

    Raises:
        ConfigurationError: the schema is not what this code needs.
    """
    ledger = Ledger(
        settings.database_url.get_secret_value(),
        connections=1,
        connect_timeout=settings.connect_timeout_seconds,
    )
    try:
        check_schema(ledger)
    except LedgerUnavailable as exc:
        click.echo(f"{exc} Waiting for it; is DATABASE_URL right?", err=True)
    finally:
        ledger.close()
    doorbells = Doorbells(settings.redis_url.get_secret_value(), settings.connect_timeout_seconds)
    try:
        doorbells.ping()
    except BrokerUnavailable as exc:
        click.echo(f"{exc} Waiting for it; is REDIS_URL right?", err=True)
    finally:
        doorbells.close()
