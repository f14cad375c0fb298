"""Safety: the settings of Postgres under which an acknowledged commit may be lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What each setting must not be, and why.
_UNSAFE: Final = {
    "fsync": ("off", "a crash of the machine loses or corrupts committed jobs"),
    "full_page_writes": ("off", "a crash of the machine can corrupt committed jobs"),
    "synchronous_commit": ("off", "an acknowledged commit can be lost"),
}
#: The variable by which an operator vouches for the storage of Postgres.
TRUST: Final = "WORKER_TRUST_POSTGRES_STORAGE"
_STANDBYS: Final = "synchronous_standby_names"
#: Levels that are less than `on` where there are synchronous standbys. On a single server each of
#: them is all that `on` can do.
_LESS: Final = {"local": "has it", "remote_write": "has it on its disk"}
#: Those that a storage which keeps every write by itself does without.
_STORAGE: Final = ("fsync", "full_page_writes")
#: Every setting that `faults_of` looks at.
JUDGED: Final = (*_UNSAFE, _STANDBYS)


def faults_of(
    settings: Mapping[str, str], *, is_pooled: bool = False, trusts_storage: bool = False
) -> list[str]:
    """One sentence for each of Postgres's `settings`, by name, that lets a commit be lost.

    Args:
        settings: as a session has them.
        is_pooled: whether a pooler stands between, where no session is ours to set.
        trusts_storage: whether the operator vouches for what is written without `_STORAGE`.
    """
    remedy = "set it to on"
    faults = [
        f"Postgres has {name} = {unsafe}: {why}; {remedy}{_otherwise(name, is_pooled)}."
        for name, (unsafe, why) in _UNSAFE.items()
        if settings.get(name) == unsafe and not (trusts_storage and name in _STORAGE)
    ]
    level = settings.get("synchronous_commit", "")
    if level in _LESS and settings.get(_STANDBYS):
        faults.append(
            f"Postgres has synchronous_commit = {level}: a commit is acknowledged before a"
            f" synchronous standby {_LESS[level]}, and a failover can lose it;"
            f" {remedy}{_otherwise('synchronous_commit', is_pooled)}."
        )
    return faults


def trusted(settings: Mapping[str, str]) -> str | None:
    """A sentence on what the operator vouches for in Postgres's `settings`, if anything."""
    off = " and ".join(f"{name} = off" for name in _STORAGE if settings.get(name) == "off")
    if not off:
        return None
    return (
        f"Postgres has {off}; its storage is trusted to keep every committed job, because"
        f" {TRUST} is set."
    )


def _otherwise(name: str, is_pooled: bool) -> str:
    if name in _STORAGE:
        return f", or, if its storage is safe without, set {TRUST}=true"
    if name != "synchronous_commit" or not is_pooled:
        return ""
    return " by ALTER ROLE or ALTER DATABASE, because behind a pooler no session can"
