"""What a child process does between fork and exec. Run as a script, by path; never imported.

A script of its own, not a `preexec_fn`: that one is unsafe in a process that has threads.

Usage: child.py PARENT DEATH_SIGNAL IDENTITY PROGRAM [ARGUMENT ...]

PARENT: the pid of the process that starts it; 0 when the child shall outlive it.
DEATH_SIGNAL: the number of the signal that the kernel sends when the parent dies.
IDENTITY: "self"; "nobody" (the user, from root); "namespace" (a user namespace in which this user
is nobody, and has that name).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_NOBODY = 65534


def main(parent: int, death_signal: int, identity: str, command: list[str]) -> None:
    """Take the identity, tie this process to its parent, become the command."""
    if identity == "nobody":
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    elif identity == "namespace":
        _enter_namespace()
    # After the identity: a change of user clears the death signal (prctl(2)).
    if parent and sys.platform == "linux":
        _call("prctl", _PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            return  # it died before the kernel was told
    # Python ignores these two from its start, and an exec would hand that down.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 -- the whole purpose; no shell is wanted


def _enter_namespace() -> None:
    """Become nobody in a new user namespace, for a program that refuses the user whom we are.

    Outside of it the process stays who it is, and so do the files that it makes: it can still
    use what only that user can.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", _CLONE_NEWUSER)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{_NOBODY} {user} 1")
    (own / "gid_map").write_text(f"{_NOBODY} {group} 1")


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*map(ctypes.c_ulong, arguments)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
