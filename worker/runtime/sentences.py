"""An error of ours that ends a command of Celery's is told in one sentence, by no traceback."""

from __future__ import annotations

import sys
from types import TracebackType

import click

from worker.errors import LedgerError


def tell_in_one_sentence() -> None:
    """Let what ends this process be told so, where it is a `celery` command.

    Celery tells the errors of its remote commands so, and shows the traceback of any other.
    """
    context = click.get_current_context(silent=True)
    celery = sys.modules.get("celery.bin.celery")
    if context is None or celery is None or context.find_root().command is not celery.celery:
        return
    theirs = sys.excepthook

    def told(
        kind: type[BaseException], exc: BaseException, traceback: TracebackType | None
    ) -> None:
        if not isinstance(exc, LedgerError):
            theirs(kind, exc, traceback)
            return
        print(f"Error: {exc}", file=sys.stderr)
        raise SystemExit(exc.exit_code)  # Python ends by it, and says nothing of its own

    sys.excepthook = told
