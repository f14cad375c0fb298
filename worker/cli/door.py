"""The client that a command works with: this environment's settings, on a schema that it knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from worker.client import Client
from worker.errors import LedgerRefused, LedgerUnavailable
from worker.ledger.migrate import check_schema
from worker.settings import Settings


@contextmanager
def opened() -> Iterator[Client]:
    """A client, closed with the block. Redis is not asked: what needs it can do without.

    Raises:
        InvalidSettings, SchemaMissing, SchemaOutdated, SchemaNewer: the operator must act.
        LedgerRefused: Postgres refuses the role, its password or the database.
        LedgerUnavailable: Postgres is away.
    """
    logging.basicConfig(level=logging.WARNING, format="Warning: %(message)s")
    with Client(Settings.load()) as client:
        try:
            check_schema(client.ledger)
        except LedgerRefused:
            raise
        except LedgerUnavailable as exc:
            raise LedgerUnavailable(f"{exc}; check DATABASE_URL, or start Postgres.") from None
        yield client


class Text(click.ParamType[str]):
    """An argument that Postgres and JSON can hold: a shell can pass bytes that are no text."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail("it is not valid UTF-8.", param, ctx)
        return str(value)


TEXT = Text()
