"""Which versions of an engine a plugin is for."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version

from .errors import WrongRequest

VARIABLE = "AWEX_COLOCATE_ANY_VERSION"


def found_version(*packages: str) -> str:
    """Of the first of these packages that is installed, "" for none."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def refuse_others(engine: str, found: str, oldest: str, newest: str) -> None:
    """Raises WrongRequest for versions that are not `oldest` to `newest` ("0.32", the last number left
    out), unless AWEX_COLOCATE_ANY_VERSION=1."""
    number = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", found)
    if os.environ.get(VARIABLE) == "1":
        return
    parts = [int(part or 0) for part in number.groups()] if number else []
    if parts and _numbers(oldest) <= parts[: oldest.count(".") + 1] and (
        parts[: newest.count(".") + 1] <= _numbers(newest)
    ):
        return
    span = oldest if oldest == newest else f"{oldest} to {newest}"
    raise WrongRequest(
        f"this plugin is for {engine} {span}; {found or 'none'} is installed",
        f"install {engine} {newest}, or set {VARIABLE}=1 to try",
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")]
