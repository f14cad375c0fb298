"""multiprocessing's folder goes while its process lives, and the next use makes another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os
from billiard.sharedctypes import RawArray
from multiprocessing import util
from worker.runtime.tempdir import forget_temp_dir, remove_temp_dir

first = RawArray("i", 4)
first[0] = 7
child = os.fork()
if not child:
    forget_temp_dir()
    assert os.path.isdir(util.get_temp_dir())  # its own
    util._exit_function()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
remove_temp_dir()
assert not os.listdir(os.environ["TMPDIR"]), "the folder is there"
assert first[0] == 7
assert os.path.isdir(util.get_temp_dir()), "another one"
"""


def test_the_folder_goes_and_what_was_in_it_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
