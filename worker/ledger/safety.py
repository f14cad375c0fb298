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
_STANDBYS: Final = "synchronous_standby_names"
#: Levels that are less than `on` where there are synchronous standbys. On a single server each of
#: them is all that `on` can do.
_LESS: Final = {"local": "has it", "remote_write": "has it on its disk"}
#: Every setting that `faults_of` looks at.
JUDGED: Final = (*_UNSAFE, _STANDBYS)


def faults_of(settings: Mapping[str, str], *, is_pooled: bool = False) -> list[str]:
    """One sentence for each of Postgres's `settings`, by name, that lets a commit be lost.

    Args:
        settings: as a session has them.
        is_pooled: whether a pooler stands between, where no session is ours to set.
    """
    remedy = "set it to on"
    faults = [
        f"Postgres has {name} = {unsafe}: {why}; {remedy}{_by_whom(name, is_pooled)}."
        for name, (unsafe, why) in _UNSAFE.items()
        if settings.get(name) == unsafe
    ]
    level = settings.get("synchronous_commit", "")
    if level in _LESS and settings.get(_STANDBYS):
        faults.append(
            f"Postgres has synchronous_commit = {level}: a commit is acknowledged before a"
            f" synchronous standby {_LESS[level]}, and a failover can lose it;"
            f" {remedy}{_by_whom('synchronous_commit', is_pooled)}."
        )
    return faults


def _by_whom(name: str, is_pooled: bool) -> str:
    if name != "synchronous_commit" or not is_pooled:
        return ""
    return " by ALTER ROLE or ALTER DATABASE, because behind a pooler no session can"
