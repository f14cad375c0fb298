"""The folder that a prefork pool makes in the temporary directory, and that nobody removed.

billiard keeps its shared memory in files there, each unlinked as soon as it is open. The folder
itself goes in a finalizer of multiprocessing, which neither a drain's `os._exit` nor a SIGKILL lets
run. It is empty, so it goes once the pool is made.
"""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import process, util
from typing import Any


def remove_temp_dir() -> None:
    """Remove multiprocessing's folder, unless something is in it; the next use makes another."""
    folder = _config().get("tempdir")
    if folder is None:
        return
    with suppress(OSError):
        os.rmdir(folder)
        forget_temp_dir()


def forget_temp_dir() -> None:
    """Let this process make a folder of its own: the one that it inherited is its parent's."""
    _config()["tempdir"] = None
    finalizers: dict[Any, Any] = util._finalizer_registry  # type: ignore[attr-defined] # its own
    for known in list(finalizers.values()):
        if getattr(known, "_callback", None) is util._remove_temp_dir:  # type: ignore[attr-defined] # ditto
            known.cancel()


def _config() -> dict[str, Any]:
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined] # ditto
    return config
