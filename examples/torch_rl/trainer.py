"""The trainer: AdamW by policy gradient, and a hand-over after every step. Started again in place of one that has
died, it goes on from what lies in the job's memory."""

from __future__ import annotations

import json

import torch
from common import Log, get, options, torch_device
from model import Config, Qwen3, load, save
from task import prompts, rewards

import awex_colocate
import awex_colocate.torch as awex_torch


def main() -> None:
    o = options("trainer")
    device = torch_device(o.device)
    model = Qwen3(Config.load(o.work / "initial")).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.learning_rate)

    memory = {"optimizer": awex_torch.optimizer_bytes(optimizer, model)}
    with awex_colocate.attach("trainer", o.job, device=o.device, memory=memory, restart_timeout=600) as engine:
        if not engine.place.reattached:
            load(model, o.work / "initial")
        engine.adopt(model)
        engine.adopt_optimizer(optimizer)
        engine.seal()
        train(engine, model, optimizer, o)


def train(engine, model, optimizer, o) -> None:
    log = Log(o.work / "trainer.jsonl")
    done = json.loads(engine.kept() or '{"step": 0}')
    if done["step"]:
        log.step(**done)  # Again, if the one that died had told of it.
    for step in range(done["step"] + 1, o.steps + 1):
        rollout = o.work / "rollouts" / f"{step}.pt"
        if step > engine.place.version:  # Else it was handed over before this process began.
            if step == 1 or step % o.check_every == 0:
                save(model, o.work / "checkpoints" / str(step))
                log.phase("save")
            version = engine.hand_over()  # None of the memory may be touched from here on.
            assert version == step, (version, step)
            log.phase("hand over")
        answer = get(rollout, engine)
        log.phase("rollout")
        engine.take_back(optimizer=False)  # Now the weights may.
        log.phase("take back")
        done = update(engine, model, optimizer, step, prompts(step, o.batch), answer)
        log.phase("train")
        log.step(**done)


def update(engine, model, optimizer, step, prompt, answer) -> dict:
    """What the step has done, which is kept with the weights that it makes."""
    device = model.lm_head.weight.device
    reward = rewards(prompt, answer)
    advantage = (reward - reward.mean(0)).to(device)
    answer = answer.to(device)
    tokens = torch.cat((prompt.to(device), answer), 1)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(tokens[:, :-1])[:, -answer.shape[1] :]
    chosen = logits.float().log_softmax(-1).gather(-1, answer[..., None]).squeeze(-1)
    loss = -(chosen * advantage).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    done = {"step": step, "loss": loss.item(), "reward": reward.mean().item()}
    engine.take_back()  # The optimizer's state, now that activations are gone.
    with engine.writing():
        optimizer.step()
        engine.keep(json.dumps(done).encode())
    optimizer.zero_grad(set_to_none=True)
    return done


if __name__ == "__main__":
    main()
