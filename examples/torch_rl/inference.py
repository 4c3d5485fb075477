"""The inference process: serves every version that the trainer hands over, with a KV cache in the job's memory."""

from __future__ import annotations

import torch
from common import options, put, torch_device
from model import Config, Qwen3, cache_shape, load
from rollout import generate
from task import LENGTH, prompts

import awex_colocate


def main() -> None:
    o = options("inference")
    device = torch_device(o.device)
    config = Config.load(o.work / "initial")
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    model = Qwen3(config).to(device, dtype)
    load(model, o.work / "initial")

    shape = cache_shape(config, o.batch, 2 * LENGTH + 1)
    memory = {"kv_cache": torch.Size(shape).numel() * dtype.itemsize}
    with awex_colocate.attach("inference", o.job, device=o.device, memory=memory) as engine:
        engine.adopt(model)
        engine.seal()
        cache = engine.empty("kv_cache", shape, dtype)
        # One that is started again serves what the one before it had, unless the trainer has its memory now.
        version = 0 if engine.memory("weights").is_mapped else engine.place.version
        while version < o.steps:
            version = engine.wait()  # Weights and cache may be touched from here on, until the next call.
            answer, logits = generate(model, prompts(version, o.batch).to(device), cache, seed=version)
            if version == 1 or version % o.check_every == 0:
                put(o.work / "logits" / f"{version}.pt", (answer.cpu(), logits.cpu()))
            put(o.work / "rollouts" / f"{version}.pt", answer.cpu())
        if not o.memory_stays:
            engine.release()  # The trainer takes its memory back for the last step.


if __name__ == "__main__":
    main()
