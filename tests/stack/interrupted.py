"""A session of tests to be interrupted: see `test_scratch`. Not collected by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests import servers
from worker.stack.scratch import VARIABLE


@pytest.mark.parametrize("number", range(2))
def test_it_is_interrupted(redis_url: str, tmp_path: Path, number: int) -> None:
    """Waits with servers, folders and a process that hears no Ctrl-C."""
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    with servers.postgres(servers.memory()) if number else nullcontext():
        _stand(tmp_path, number)


def _stand(tmp_path: Path, number: int) -> None:
    (tmp_path / "mark").write_text(os.environ[VARIABLE])
    (tmp_path / "mark").rename(Path(os.environ["STANDS"], str(number)))
    time.sleep(600)
