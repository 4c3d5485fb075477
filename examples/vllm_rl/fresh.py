"""Compares what vLLM said with a fresh vLLM on each checkpoint that the trainer saved; run.py starts it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "torch_rl"))
from common import options  # noqa: E402
from engine import CHECKED, answers, start  # noqa: E402


def end(llm) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def main() -> None:
    o = options("check")
    for path in sorted((o.work / "greedy").glob("*.pt"), key=lambda path: int(path.stem)):
        llm = start(o, o.work / "checkpoints" / path.stem)
        said = answers(llm, int(path.stem), CHECKED, greedy=True)
        end(llm)
        if not torch.equal(said, torch.load(path)):
            sys.exit(f"error: version {path.stem} differs from the checkpoint that the trainer saved of it")


if __name__ == "__main__":
    main()
