"""The job of engines that are started by others, by variables of their environment."""

from __future__ import annotations

import os

from .errors import WrongRequest

__all__ = ["JOB_VARIABLE", "PATIENCE_VARIABLE", "job", "patience"]

JOB_VARIABLE = "AWEX_COLOCATE_JOB"
PATIENCE_VARIABLE = "AWEX_COLOCATE_TIMEOUT"


def job() -> str:
    """The job's directory. Raises WrongRequest where AWEX_COLOCATE_JOB does not name it."""
    if found := os.environ.get(JOB_VARIABLE):
        return found
    raise WrongRequest(f"{JOB_VARIABLE} is not set", "set it to the DIR of awex-colocate serve --job DIR")


def patience() -> float:
    """Seconds that a call waits: AWEX_COLOCATE_TIMEOUT, 600 where it is not set. Raises WrongRequest where it is no
    number above 0."""
    text = os.environ.get(PATIENCE_VARIABLE) or "600"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise WrongRequest(f"{PATIENCE_VARIABLE}={text} is no number of seconds", "say 600, or leave it out")
    return seconds
