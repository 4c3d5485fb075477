"""Files by which the processes of a test wait for each other."""

import time
from pathlib import Path


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def get(path: Path, patience_s: float = 900) -> None:
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has not come")
        time.sleep(0.01)
