"""Compile to bytecode what the named modules import, the standard library's part of it too.

    python bytecode.py STAGE MODULE...

Python's images have no bytecode, and a read-only root keeps none that is made later: every start
would compile for most of a second. Only what is imported, because all of it would be 50 MB.

STAGE is a folder that will be laid over `sys.prefix`, where this Python lives; the bytecode goes
there. It is never held against its source, whose time another builder may change.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode, compile


def main(stage: Path, names: list[str]) -> None:
    sys.path.append(sysconfig.get_path("purelib", vars={"base": str(stage)}))
    for name in names:
        import_module(name)
    files = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
    for path in (Path(file) for file in files if file and file.endswith(".py")):
        for home in (stage, Path(sys.prefix)):
            if path.is_relative_to(home):
                inside = path.relative_to(home)
                compile(
                    str(path),
                    cache_from_source(str(stage / inside)),
                    str(Path(sys.prefix) / inside),
                    doraise=True,
                    invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
                )
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
