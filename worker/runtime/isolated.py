"""The isolated process itself: what it is told, how it is set up, and how it starts by its app."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from celery.apps import worker as celery_worker

from worker.errors import ConfigurationError, LedgerError
from worker.runtime.isolation import FEWEST
from worker.runtime.tether import Origin
from worker.settings import Settings, environment_with, variable_of

_PR_SET_PDEATHSIG = 1


def main(spec: Mapping[str, Any]) -> None:
    """Run suspects for a worker that another program runs, until none is left: its app alone.

    Args:
        spec: the `app` as `module:attribute`, the `modules` of its tasks, its `queues`, and the
            worker's `hostname` and `loglevel`.
    """
    try:
        app = _app(str(spec["app"]))
    except LedgerError as exc:
        print(f"Error: {exc}", file=sys.stderr)
        raise SystemExit(exc.exit_code) from None
    for module in spec["modules"]:
        with suppress(ImportError):  # its tasks are unknown here, and the log says so
            import_module(module)
    worker = app.Worker(
        queues=list(spec["queues"]), hostname=spec["hostname"], pool="prefork",
        loglevel=spec["loglevel"], beat=False, without_mingle=True, without_gossip=True, quiet=True,
    )  # fmt: skip
    worker.start()
    raise SystemExit(worker.exitcode)


def _app(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        app = getattr(import_module(module), attribute)
    except Exception as exc:
        raise ConfigurationError(
            f"The app {path} cannot be imported for the process that runs suspects:"
            f" {type(exc).__name__}: {exc}."
        ) from exc
    if getattr(app, "ledger", None) is None:
        raise ConfigurationError(
            f"The app {path} is not durable where it is imported alone; call durable(app) beside"
            " its definition, so that suspects can run in a process of their own."
        )
    return app


def handed_down(settings: Settings) -> Settings:
    """`settings` as the worker that started this process wants them: an app that was given its
    settings by hand does not read them from the environment, and would be one more worker."""
    given = environment_with()
    isolated = given.get(variable_of("isolated"))
    if not isolated or settings.isolated:
        return settings
    return settings.model_copy(
        update={
            "isolated": isolated,
            "pool": "prefork",
            "concurrency": int(given.get(variable_of("concurrency")) or FEWEST),
            "drain_seconds": float(given.get(variable_of("drain_seconds")) or 0),
        }
    )


def become_isolated(controller: Any, settings: Settings) -> None:
    """Make the worker that is being set up one that runs each job in a child of its own.

    Raises:
        SystemExit: the worker that started this process has died already.
    """
    assert settings.isolated is not None
    die_with_parent(signal.SIGTERM)
    # In this order: who dies after the first line is noticed by the kernel.
    if os.getppid() != Origin.read(settings.isolated).pid:
        raise SystemExit(0)
    # Celery collects garbage before each fork: 0.1 s for each child, with all that is imported.
    gc.freeze()
    controller.pool_cls = "prefork"
    controller.concurrency = settings.concurrency
    controller.pidfile = controller.statedb = None  # the worker's own, not to be shared
    controller.hostname = f"isolated-{os.getpid()}.{controller.hostname}"
    _name_its_words(controller.hostname)


def _name_its_words(hostname: str) -> None:
    """Let what Celery prints at a shutdown name this process: its worker's output is shared."""
    say = celery_worker.safe_say  # type: ignore[attr-defined] # Celery's own

    def say_who(msg: str, *args: Any) -> Any:
        return say(msg.replace("MainProcess", hostname), *args)

    celery_worker.safe_say = say_who  # type: ignore[attr-defined] # ditto


def die_with_parent(with_signal: int = signal.SIGKILL) -> None:
    """Ask Linux to end this process when its parent dies; elsewhere it notices by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal, 0, 0, 0)
