"""`worker check`: the effective configuration, and proof that this service could run on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

from worker.broker.doorbells import Doorbells
from worker.cli.answer import printable
from worker.cli.effective import effective, without_secrets
from worker.cli.imports import shadow_fault, tasks_fault
from worker.cli.strays import says, strays
from worker.errors import InvalidSettings, LedgerError
from worker.flows.status import NO_KEEPER
from worker.ledger.database import Ledger
from worker.ledger.durability import (
    durability_faults,
    mended,
    require_writes,
    server_version,
    vouched_for,
)
from worker.ledger.migrate import check_schema, head, second_ledger
from worker.ledger.status import keeper_leads
from worker.settings import Settings

T = TypeVar("T")

#: What asks the operator to act; an unavailable store asks for 3.
_CONFIGURATION: Final = 2
#: The first Redis with what the transport and the scripts use.
_OLDEST_REDIS: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: a sentence, the exit code that it asks for, whether it is a warning."""

    check: str
    says: str
    exit_code: int = 0
    warning: bool = False


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(as_json: bool) -> None:
    """Print every setting, then prove that the stores, the schema and the tasks are right.

    Exit codes: 0 all is well, 2 a fault in the configuration, 3 a store is unavailable.
    """
    shown: dict[str, str] = {}
    findings: list[Finding] = []
    for found in _findings(shown):
        if not as_json:
            _print(found, {} if findings else shown)
        findings.append(found)
    codes = {found.exit_code for found in findings} - {0}
    if as_json:
        checks = [asdict(found) | {"ok": not found.exit_code} for found in findings]
        click.echo(json.dumps({"ok": not codes, "settings": shown, "checks": checks}))
    if codes:
        # Waiting mends no configuration: a fault of it goes before a store that is away.
        raise click.exceptions.Exit(min(codes - {1}, default=_CONFIGURATION))


def _findings(shown: dict[str, str]) -> Iterator[Finding]:
    """Each check, as it is made; `shown` is filled before the first."""
    try:
        settings = Settings.load()
    except InvalidSettings as exc:
        for line in str(exc).splitlines():
            yield Finding("settings", line, _CONFIGURATION)
        return
    shown |= effective(settings)
    for name, meant in strays().items():
        # Another program's WORKER_… is no fault.
        yield Finding("settings", says(name, meant), _CONFIGURATION if meant else 0)
    yield from _one("package", lambda: shadow_fault(Path.cwd()), "Nothing shadows the package.")
    yield from _postgres(settings)
    yield from _redis(settings)
    modules = ", ".join(settings.tasks) or "none beside the built-in ones (WORKER_TASKS)"
    yield from _one("tasks", tasks_fault, f"The task modules can be imported: {modules}.")


def _postgres(settings: Settings) -> Iterator[Finding]:
    url = settings.database_url.get_secret_value()
    timeout = settings.connect_timeout_seconds
    opened = Ledger(
        url,
        name="worker check",
        connect_timeout=timeout,
        schema=settings.ledger_schema,
        bears_unsafe=True,
    )
    with closing(opened) as ledger:
        version, away = _asked("postgres", lambda: server_version(ledger))
        if away:
            yield away
            return
        yield Finding("postgres", f"Postgres {version} answers at {without_secrets(url)}.")
        _, failed = _asked("postgres", lambda: require_writes(ledger))
        if failed:
            yield failed
        trusts = settings.trust_postgres_storage
        faults, failed = _asked(
            "postgres durability", lambda: durability_faults(ledger, trusts_storage=trusts)
        )
        yield from _all("postgres durability", faults, failed, "Postgres keeps what it commits.")
        if trusts:
            told, failed = _asked("postgres durability", lambda: vouched_for(ledger))
            if told or failed:
                yield failed or Finding("postgres durability", told or "", warning=True)
        told, failed = _asked("postgres durability", lambda: mended(ledger))
        if told or failed:
            yield failed or Finding("postgres durability", told or "")
        revision, failed = _asked("schema", lambda: check_schema(ledger))
        own = "." if revision == head() else f", which this version, at {head()}, runs on."
        yield failed or Finding("schema", f"The schema is at {revision}{own}")
        second, _ = _asked("schema", lambda: second_ledger(ledger))
        if second:
            yield Finding("schema", second, _CONFIGURATION)
        if not failed:
            leads, failed = _asked("keeper", lambda: keeper_leads(ledger))
            yield failed or _keeper(bool(leads))


def _redis(settings: Settings) -> Iterator[Finding]:
    url = settings.redis_url.get_secret_value()
    opened, failed = _asked("redis", lambda: Doorbells(url, settings.connect_timeout_seconds))
    if failed or opened is None:
        yield failed or Finding("redis", "Redis cannot be asked.", _CONFIGURATION)
        return
    with closing(opened) as doorbells:
        server, away = _asked("redis", doorbells.server)
        if away or server is None:
            yield away or Finding("redis", "Redis does not say what it is.", _CONFIGURATION)
            return
        yield _answers(*server, without_secrets(url))
        faults, failed = _asked("redis durability", doorbells.durability_faults)
        yield from _all("redis durability", faults, failed, "Redis drops no list when it is full.")
        length, failed = _asked("quarantine", doorbells.quarantine_length)
        yield failed or _quarantine(length or 0)


def _answers(name: str, version: str, address: str) -> Finding:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "Redis" and numbers < _OLDEST_REDIS:
        says = f"Redis {version} at {address} is too old; use 6.2 or later, or Valkey."
        return Finding("redis", says, _CONFIGURATION)
    return Finding("redis", f"{name} {version} answers at {address}.")


def _keeper(leads: bool) -> Finding:
    # A warning: a configuration is checked before anything of the service runs, too.
    return Finding("keeper", "A keeper leads." if leads else NO_KEEPER, warning=not leads)


def _quarantine(length: int) -> Finding:
    if not length:
        return Finding("quarantine", "The quarantine is empty.")
    entries = "1 entry" if length == 1 else f"{length} entries"
    says = (
        f"The quarantine holds {entries} that no worker could read; look with"
        ' `redis-cli -u "$REDIS_URL" lrange ledger:quarantine 0 9`.'
    )
    return Finding("quarantine", says, warning=True)


def _one(check: str, proof: Callable[[], str | None], good: str) -> Iterator[Finding]:
    """A check that returns its fault."""
    fault, failed = _asked(check, proof)
    yield failed or Finding(check, fault or good, _CONFIGURATION if fault else 0)


def _all(
    check: str, faults: list[str] | None, failed: Finding | None, good: str
) -> Iterator[Finding]:
    """A check that returns its faults, asked already."""
    if failed:
        yield failed
    for fault in faults or ():
        yield Finding(check, fault, _CONFIGURATION)
    if not failed and not faults:
        yield Finding(check, good)


def _asked(check: str, question: Callable[[], T]) -> tuple[T | None, Finding | None]:
    """The answer, or what came instead of one."""
    try:
        return question(), None
    except LedgerError as exc:
        return None, Finding(check, str(exc), max(exc.exit_code, _CONFIGURATION))
    except Exception as exc:  # a diagnosis must not end in a traceback, which may show a secret
        return None, Finding(check, f"{type(exc).__name__} is all that came back.", _CONFIGURATION)


def _print(found: Finding, shown: dict[str, str]) -> None:
    for variable, value in shown.items():
        click.echo(printable(f"{variable}={value}"))
    mark = click.style("✗", fg="red") if found.exit_code else click.style("✓", fg="green")
    mark = click.style("!", fg="yellow") if found.warning else mark
    click.echo(f"{mark} {printable(found.says)}")
