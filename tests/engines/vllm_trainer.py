"""A trainer of Transformers' Qwen3: vllm_trainer.py JOB WORK UPDATES. Saves every version as a checkpoint."""

import sys
from pathlib import Path

import torch
from files import get, put
from transformers import Qwen3ForCausalLM

import awex_colocate
import awex_colocate.torch as support

JOB, WORK, UPDATES = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
model = Qwen3ForCausalLM.from_pretrained(WORK / "initial", dtype=torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
engine = awex_colocate.attach(
    "trainer", JOB, device="host:0", memory={"optimizer": support.optimizer_bytes(optimizer)}
)
engine.adopt(model)
engine.adopt_optimizer(optimizer)
engine.seal()
for version in range(1, UPDATES + 1):
    model.save_pretrained(WORK / "checkpoints" / str(version))
    served = engine.hand_over()
    assert served == version, (served, version)
    get(WORK / "served" / str(version))
    engine.take_back()
    tokens = torch.randint(0, 1000, (4, 32), generator=torch.Generator().manual_seed(version))
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    with engine.writing():
        optimizer.step()
    print("step", version, loss.item(), flush=True)
put(WORK / "trained")
