"""Where the processes of a test run, and the files by which they wait for each other."""

import os
import time
from pathlib import Path

#: Seconds that anybody waits for anybody else: engines take minutes to start where many share the processors.
PATIENCE_S = 3600.0
#: As `awex_colocate.attach` names it: host, or cuda:0; where each rank has a GPU, its own.
DEVICE = os.environ.get("ENGINES_DEVICE", "host")
if DEVICE == "cuda":
    DEVICE = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
ON_GPU = DEVICE != "host"


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def get(path: Path, patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has not come")
        time.sleep(0.01)
