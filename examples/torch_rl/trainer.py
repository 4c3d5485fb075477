"""The trainer: AdamW by policy gradient, and a hand-over after every step."""

from __future__ import annotations

import torch
from common import Log, get, options, put, torch_device
from model import Config, Qwen3, load, save
from task import prompts, rewards

import awex_colocate
import awex_colocate.torch as awex_torch


def main() -> None:
    o = options("trainer")
    device = torch_device(o.device)
    model = Qwen3(Config.load(o.work / "initial")).to(device)
    load(model, o.work / "initial")
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.learning_rate)

    memory = {"optimizer": awex_torch.optimizer_bytes(optimizer, model)}
    with awex_colocate.attach("trainer", o.job, device=o.device, memory=memory) as engine:
        engine.adopt(model)
        engine.adopt_optimizer(optimizer)
        engine.seal()
        train(engine, model, optimizer, o)


def train(engine, model, optimizer, o) -> None:
    log = Log(o.work / "trainer.jsonl")
    for step in range(1, o.steps + 1):
        if step == 1 or step % o.check_every == 0:
            save(model, o.work / "checkpoints" / str(step))
            log.phase("save")
        version = engine.hand_over()  # None of the memory may be touched from here on.
        assert version == step, (version, step)
        log.phase("hand over")
        answer = get(o.work / "rollouts" / f"{version}.pt")
        log.phase("rollout")
        engine.take_back()  # Now it may.
        log.phase("take back")
        loss, reward = update(engine, model, optimizer, prompts(version, o.batch), answer)
        log.phase("train")
        log.step(step=step, loss=loss, reward=reward)


def update(engine, model, optimizer, prompt, answer) -> tuple[float, float]:
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
    with engine.writing():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), reward.mean().item()


if __name__ == "__main__":
    main()
