"""Whom Postgres runs as: it refuses root, and a user whom the system has no name for."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from pathlib import Path

from worker.errors import StackError
from worker.stack.process import Identity, launched

_ROOT = 0
_NOBODY = 65534


def choose(program: Path, data: Path) -> Identity:
    """Whom `program` can run as with its data in `data`. Root gives `data` to that user.

    Raises:
        StackError: Postgres would refuse this user, and nothing else that was tried can do it.
    """
    user = os.geteuid()
    if user == _ROOT:
        # Nobody first: it cannot read what root can. It cannot pass a 0700 folder above either.
        options: tuple[tuple[Identity, int], ...] = (("nobody", _NOBODY), ("namespace", _ROOT))
    else:
        options = (("self" if _has_name(user) else "namespace", user),)
    for identity, owner in options:
        if user == _ROOT:
            _give(data, owner)
        if _can_run(identity, program, data):
            return identity
    raise StackError(
        f"Postgres refuses to run as user {user}, and as nobody it cannot use {program} and {data};"
        " run this as an ordinary user."
    )


def _has_name(user: int) -> bool:
    """Whether the system knows the user; a container may run as any number."""
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _give(folder: Path, owner: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, owner, owner, follow_symlinks=False)


def _can_run(identity: Identity, program: Path, data: Path) -> bool:
    script = 'cd "$1" && test -w . && exec "$2" --version'
    command = ["/bin/sh", "-c", script, "sh", str(data), str(program)]
    tried = subprocess.run(
        launched(command, identity=identity, death_signal=signal.SIGTERM),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
    )
    return tried.returncode == 0
