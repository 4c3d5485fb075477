"""What both processes do: options, files that the other waits for, a log."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

import awex_colocate


def options(role: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"The {role} of examples/torch_rl; run.py starts it")
    parser.add_argument("--job", required=True, help="DIR of awex-colocate serve --job DIR")
    parser.add_argument("--work", type=Path, required=True, help="folder of this run's files")
    parser.add_argument("--device", default="host")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--check-every", type=int, default=50, help="versions whose logits are compared")
    parser.add_argument("--memory-stays", action="store_true", help="the job has --no-offload")
    chosen = parser.parse_args()
    if chosen.device == "host":
        torch.set_num_threads(1)
    return chosen


def torch_device(device: str) -> str:
    return "cpu" if device == "host" else device


def put(path: Path, value: object) -> None:
    """Writes a file that another process waits for, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def get(path: Path, engine: awex_colocate.Engine, patience_s: float = 600) -> object:
    """Waits for a file and reads it. Raises EngineLost where the job is gone."""
    end = time.monotonic() + patience_s
    while not path.exists():
        engine.check()
        if time.monotonic() > end:
            raise TimeoutError(f"{path} has not come")
        time.sleep(0.001)
    return torch.load(path)


class Log:
    """A line of JSON for each step, and the seconds of its phases."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a", buffering=1)
        self.start()

    def start(self) -> None:
        self.phases: dict[str, float] = {}
        self.last = time.perf_counter()

    def phase(self, name: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.phases[name] = self.phases.get(name, 0) + now - self.last
        self.last = now

    def step(self, **values: object) -> None:
        self.file.write(json.dumps({**values, "seconds": self.phases}) + "\n")
        self.start()
