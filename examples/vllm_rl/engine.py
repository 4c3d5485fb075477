"""A vLLM of the example's model, in this process: options that the serving engine and the fresh ones share."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import torch
from task import LENGTH, prompts

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHECKED = 64  #: Prompts whose greedy answers are compared.


def start(o: Namespace, checkpoint: Path, **more: object):
    """An LLM that has loaded a checkpoint."""
    on_gpu = o.device != "host"
    if on_gpu:
        _, _, index = o.device.partition(":")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", index or "0")
    import unpacked  # noqa: F401: before vLLM loads
    from vllm import LLM

    return LLM(
        model=str(checkpoint), skip_tokenizer_init=True, dtype="bfloat16" if on_gpu else "float32",
        enforce_eager=True, max_model_len=64, max_num_seqs=256, block_size=32, seed=0,
        kv_cache_memory_bytes=(1 << 30) if on_gpu else (64 << 20), **more,
    )  # fmt: skip


def answers(llm, version: int, count: int, *, greedy: bool = False) -> torch.Tensor:
    """[count, LENGTH]: what vLLM answers to a version's prompts, sampled the same for a version whoever asks."""
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": row} for row in prompts(version, count).tolist()]
    sampling = [
        SamplingParams(
            temperature=0.0 if greedy else 1.0, seed=None if greedy else version * count + number,
            max_tokens=LENGTH, ignore_eos=True, detokenize=False,
        )
        for number in range(count)
    ]  # fmt: skip
    found = llm.generate(requests, sampling, use_tqdm=False)
    return torch.tensor([list(one.outputs[0].token_ids) for one in found])
