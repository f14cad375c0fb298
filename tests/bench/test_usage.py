from __future__ import annotations

import os
import subprocess
import sys

from tests.bench import usage


def test_a_tree_is_a_process_with_all_below_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= set(usage.tree(os.getpid()))
        assert usage.memory([child.pid]) > 0
    finally:
        child.communicate()


def test_a_process_that_has_ended_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    assert usage.tree(child.pid) == [child.pid]
    assert usage.seconds([child.pid, None]) == 0
    assert usage.memory([child.pid, None]) == 0
