"""A line on standard error as each stage begins and ends, with or without a terminal."""

from __future__ import annotations

import logging


def stage_lines() -> None:
    """Show what the studies say of their progress; calling it twice adds nothing."""
    logger = logging.getLogger("raybench.progress")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
