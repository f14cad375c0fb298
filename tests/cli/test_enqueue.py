"""`worker enqueue`: one job, or a file of them, durable when it returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.conftest import Command
from tests.processes import Processes
from tests.stack.orphans import alive  # noqa: F401
