"""An error of ours that ends a command of Celery's is told in one sentence, by no traceback."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import NoReturn

import click
from kombu.exceptions import OperationalError

from worker.broker.faults import translated
from worker.errors import LedgerError


def tell_in_one_sentence() -> None:
    """Let what ends this process be told so, where it is a `celery` command.

    Celery tells the errors of its remote commands so, and shows the traceback of any other: of one
    that the app's module raises while Celery loads it, and of one that ends the command.
    """
    context = click.get_current_context(silent=True)
    celery = sys.modules.get("celery.bin.celery")
    if context is None or celery is None or context.find_root().command is not celery.celery:
        return
    theirs, refuse = sys.excepthook, context.fail

    def told(
        kind: type[BaseException], exc: BaseException, traceback: TracebackType | None
    ) -> None:
        ours = _ours(exc)
        if ours is None:
            theirs(kind, exc, traceback)
            return
        _end(ours)  # Python ends by it, and says nothing of its own

    def refused(message: str) -> NoReturn:
        """Celery cannot load the app, and has put the traceback into `message`."""
        exc = sys.exc_info()[1]
        if isinstance(exc, LedgerError):
            _end(exc)
        refuse(message)

    sys.excepthook = told
    if context.command is celery.celery:
        vars(context)["fail"] = refused


def _end(exc: LedgerError) -> NoReturn:
    print(f"Error: {exc}", file=sys.stderr)
    raise SystemExit(exc.exit_code)


def _ours(exc: BaseException) -> LedgerError | None:
    """`exc` in our words, if it is one of ours or says that Redis is away."""
    if isinstance(exc, LedgerError):
        return exc
    cause = exc.__cause__ if isinstance(exc, OperationalError) else exc
    if cause is None or type(cause).__module__.partition(".")[0] != "redis":
        return None
    try:
        with translated():
            raise cause
    except LedgerError as ours:
        return ours
    except Exception:  # of redis-py, and no fault of the server's
        return None
