"""The inference process: a real vLLM that serves every version which the trainer hands over."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "torch_rl"))
from common import options, put  # noqa: E402
from engine import CHECKED, answers, start  # noqa: E402

import awex_colocate.vllm as awex_vllm  # noqa: E402


def main() -> None:
    o = options("inference")
    llm = start(o, o.work / "initial", weight_transfer_config={"backend": "awex"})
    awex_vllm.attach(llm, o.job, kv_cache=True)
    for version in range(1, o.steps + 1):
        awex_vllm.update(llm, version=version)  # Weights and cache are vLLM's until the next call.
        if version == 1 or version % o.check_every == 0:
            put(o.work / "greedy" / f"{version}.pt", answers(llm, version, CHECKED, greedy=True))
        put(o.work / "rollouts" / f"{version}.pt", answers(llm, version, o.batch))
    if not o.memory_stays:
        awex_vllm.release(llm)  # The trainer takes its memory back for the last step.


if __name__ == "__main__":
    main()
