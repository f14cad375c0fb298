"""Logging: one line an event, for people; set up once by the command line."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up(level: str) -> None:
    """Log to stderr from `level` (debug, info, warning, error) on."""
    logging.basicConfig(level=level.upper(), format=FORMAT)
