"""How a worker starts its isolated process: by its own command anew, or by its app's import path.

A command runs anew only where it is known to be a worker's and nothing else: Celery's, or ours. A
script that starts a worker of its own would do everything else that it does a second time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.settings import environment_with

#: Options of Celery's worker that the isolated process does without.
_ALONE = frozenset({"-B", "--beat", "-D", "--detach"})
_WITH_VALUE = frozenset(
    {"--autoscale", "--pidfile", "-s", "--schedule", "--schedule-filename", "--scheduler",
     "-S", "--statedb", "--workdir"}
)  # fmt: skip
#: Options of Python that have a value of their own.
_PYTHONS = frozenset({"-X", "-W", "--check-hash-based-pycs"})
#: Modules that are a worker's command, and the word that says so.
_COMMANDS = {
    "celery": "worker", "celery.__main__": "worker", "celery.bin.celery": "worker",
    "worker": "run", "worker.__main__": "run", "worker.cli.main": "run",
}  # fmt: skip
_BOOT = (
    "import sys, json; spec = json.loads(sys.argv[1]); sys.path[:] = spec['path'];"
    "from worker.runtime.isolated import main; main(spec)"
)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, and where it is run.

    Attributes:
        argv: the program and its arguments.
        cwd: its working directory.
        variables: added to this process's environment.
    """

    argv: list[str]
    cwd: str
    variables: Mapping[str, str] = field(default_factory=dict)


class Launcher:
    """Knows how to start a process like this one; made before the worker runs anything, because a
    task may change the working directory.

    Args:
        process: the worker's `Process`.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self._argv, self._cwd = list(sys.orig_argv), os.getcwd()
        self._path = [os.path.abspath(entry) for entry in sys.path]

    def launch(self) -> Launch | str:
        """What to start; or, in one clause, why nothing can be started here."""
        if not self._process.owns_process:
            return "it runs in a thread of another program"
        known = own_command(self._argv)
        if known is not None:
            return Launch(isolated_argv(known), self._cwd, self._moved())
        app = self._process.app
        name = import_path(app)
        if name is None:
            return "another program runs it, and its app is found in no module by name"
        spec = {
            "app": name,
            "path": self._path,
            "modules": sorted(_modules(app)),
            "queues": list(self._process.queues()),
            "hostname": str(self._process.controller.hostname),
            "loglevel": getattr(self._process.controller, "loglevel", None) or "WARNING",
        }
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # as multiprocessing does
        return Launch([sys.executable, *flags, "-c", _BOOT, json.dumps(spec)], self._cwd)

    def _moved(self) -> dict[str, str]:
        """What `--workdir` has changed: the process starts where it led, and finds what was found
        from where the command was given."""
        if "CELERY_WORKDIR" not in environment_with() and not any(
            word.partition("=")[0] == "--workdir" for word in self._argv
        ):
            return {}
        prefixes = {sys.prefix, sys.base_prefix}
        path = [one for one in self._path if not any(one.startswith(p) for p in prefixes)]
        return {"PYTHONPATH": os.pathsep.join(path), "CELERY_WORKDIR": ""}


def own_command(argv: Sequence[str]) -> list[str] | None:
    """The command line of this process, if it is a worker's own; else `None`.

    Args:
        argv: `sys.orig_argv`.
    """
    words = iter(argv)
    next(words, None)
    kept = [sys.executable]
    for word in words:
        if word in _PYTHONS:
            kept += [word, next(words, "")]
        elif word == "-m":
            module = next(words, "")
            return _known([*kept, "-m", module], module, list(words))
        elif word.startswith("-"):
            if word.startswith("-c") or word == "-":
                return None
            kept.append(word)
        else:
            script = getattr(sys.modules.get("__main__"), "__file__", None)
            return _known([*kept, os.path.abspath(script or word)], _entry(word), list(words))
    return None


def _known(start: list[str], module: str | None, words: list[str]) -> list[str] | None:
    command = _COMMANDS.get(module or "")
    return [*start, *words] if command is not None and command in words else None


def _entry(script: str) -> str | None:
    """The module whose `main` a console script runs, as pip writes them."""
    name = Path(script).name.removesuffix(".exe")
    if name not in ("celery", "worker"):
        return None
    main = vars(sys.modules["__main__"]).get("main")
    return getattr(main, "__module__", None)


def isolated_argv(argv: Sequence[str]) -> list[str]:
    """A worker's command line without what must not happen twice: beat, files, detaching."""
    kept: list[str] = []
    skip = False
    for word in argv:
        name, is_assigned, _ = word.partition("=")
        if skip:
            skip = False
        elif name in _WITH_VALUE:
            skip = not is_assigned
        elif name not in _ALONE:
            kept.append(word)
    return kept


def import_path(app: Any) -> str | None:
    """`module:attribute` by which another process finds `app`; `None` if there is none."""
    for name, module in sorted(_imported(), key=lambda item: item[0] != app.main):
        for attribute, value in list(vars(module).items()):
            if value is app:
                return f"{name}:{attribute}"
    return None


def _imported() -> Iterator[tuple[str, Any]]:
    """The modules that another process can import: not the program itself, which would run."""
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if name in ("__main__", "__mp_main__") or spec is None or spec.name != name:
            continue
        if name.partition(".")[0] == "celery":
            continue  # it keeps the app that was made last, whichever that is
        if isinstance(getattr(module, "__dict__", None), dict):
            yield name, module


def _modules(app: Any) -> set[str]:
    """The modules that its tasks stand in."""
    known = {name for name, _ in _imported()}
    return {type(task).__module__ for task in app.tasks.values()} & known
