"""What the workers of an embedded stack serve; and, as a program, whether they can serve an app."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from worker.errors import ConfigurationError, LedgerError
from worker.ledger.database import Ledger
from worker.ledger.strangers import living, served_tasks
from worker.settings import Settings
from worker.stack.stack import Stack

#: Tasks that are named; an app may have hundreds.
NAMED = 12


class Served:
    """Says, once all workers of a stack are there, which tasks they serve.

    Args:
        stack: it runs.
        app: whose the workers are; `None` for the service's own.
    """

    def __init__(self, stack: Stack, app: str | None) -> None:
        settings = Settings.load(
            database_url=stack.environment["DATABASE_URL"],
            redis_url=stack.environment["REDIS_URL"],
        )
        self._ledger = Ledger.of(settings, "worker up", connections=1)
        self._wanted, self._app = len(stack.workers), app
        self._is_said = self._wanted == 0

    def look(self) -> str | None:
        """What to say now; `None` when it is said, or not known yet."""
        if self._is_said:
            return None
        try:
            if living(self._ledger) < self._wanted:
                return None
            tasks = served_tasks(self._ledger)
        except LedgerError:
            return None
        self._is_said = True
        self._ledger.close()
        return said_of(tasks, self._app)


def said_of(tasks: list[str], app: str | None) -> str:
    """Which tasks the workers serve, and how they come to serve others."""
    named = ", ".join(tasks[:NAMED]) or "none"
    more = f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else ""
    serves = textwrap.fill(f"The workers serve: {named}{more}.", 100, subsequent_indent="  ")
    how = "" if app else "\nFor your own tasks: `worker up --app shop.app`, or set WORKER_TASKS."
    return serves + how


def check_app(name: str) -> None:
    """Make sure that `name`, as of `celery -A`, is an app that is durable.

    Raises:
        ConfigurationError: it is none, or `durable(app)` was not called.
    """
    from celery.app.utils import find_app  # Celery takes half a second to import

    from worker.runtime.install import Durability

    try:
        app: Any = find_app(name)
    except LedgerError:
        raise
    except BaseException as exc:  # whatever the user's module raises; sys.exit() too
        reason = f"{type(exc).__name__}: {exc}"
        raise ConfigurationError(
            f"--app names {name!r}, which cannot be loaded: {reason}; expected a Celery app that"
            " `celery -A` finds from this directory, as shop.app."
        ) from exc
    if not isinstance(getattr(app, "ledger", None), Durability):
        raise ConfigurationError(
            f"The app {name!r} is not durable; call `durable(app)` of `worker.runtime` where it is"
            " made."
        )


def main(argv: list[str]) -> int:
    """Check the app that `argv` names; the exit code."""
    try:
        check_app(argv[0])
    except LedgerError as exc:
        print(" ".join(str(exc).split()), file=sys.stderr)  # who reads it takes one line
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
