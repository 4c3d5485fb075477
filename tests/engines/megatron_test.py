"""Megatron-core's parameters, masters and moments move, and it trains on as it would have: under torchrun."""

import os
import sys
from unittest import mock

import torch
from on_cpu import pretend

pretend()
import megatron.core.optimizer  # noqa: E402
import megatron_model  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
import fake_engine  # noqa: E402

import awex_colocate.megatron as support  # noqa: E402

TP = int(os.environ.get("TP", "1"))
NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}


def losses(ddp, optimizer, steps):
    found = []
    for step in steps:
        found.append(megatron_model.gradients(ddp, optimizer, step))
        optimizer.step()
    return found


def inside(engine, tag, tensor):
    begin = engine.memory(tag).address
    return begin <= tensor.data_ptr() < begin + engine.memory(tag).bytes


model, ddp, optimizer = megatron_model.build(TP)
whole = losses(ddp, optimizer, range(6))
model, ddp, optimizer = megatron_model.build(TP)
got = losses(ddp, optimizer, range(2))
layout = [
    (name, NAMES[p.dtype], *((p.shape[0], p.shape[1]) if p.dim() == 2 else (p.numel(), 1)))
    for name, p in model.named_parameters()
]
sizes = {"weights": support.weights_bytes(ddp), "optimizer": support.optimizer_bytes(optimizer)}
engine = fake_engine.make(layout, **sizes)
support.adopt(engine, ddp, optimizer)
for name, parameter in model.named_parameters():
    assert inside(engine, "weights", parameter), name
assert engine._lib.used["optimizer"] == sizes["optimizer"], (engine._lib.used, sizes)
assert len(engine._lib.declared) > len(layout)  # Masters and moments, too: of dp ranks each has a part.
got += losses(ddp, optimizer, range(2, 6))
engine._check()
for one in support._chained(optimizer):
    for parameter, state in one.optimizer.state.items():
        for value in [parameter, *state.values()]:
            if isinstance(value, torch.Tensor) and value.dim():
                assert inside(engine, "optimizer", value)
assert got == whole, (got, whole)

# Weights of its own are declared where they are, and stay there; masters and moments move.
model, ddp, optimizer = megatron_model.build(TP)
model.share_memory()
engine = fake_engine.make(layout, optimizer=support.optimizer_bytes(optimizer), own="stays")
support.register(engine, ddp, optimizer)
assert losses(ddp, optimizer, range(6)) == whole
engine._check()
places = {name: p.data_ptr() for name, p in model.named_parameters()}
assert {name: lent[-1] for name, lent in engine._lib.lent.items()} == places
for buffer in ddp.buffers:
    assert buffer.param_data.is_shared()
for one in support._chained(optimizer):
    for parameter, state in one.optimizer.state.items():
        assert inside(engine, "optimizer", parameter) and inside(engine, "optimizer", state["exp_avg"])


class StepInGroup(torch.optim.Optimizer):
    """Adam in the way of Transformer Engine's: no Adam of torch's, its state made by the first step."""

    def __init__(self, params, lr, weight_decay, betas, eps, capturable, adam_w_mode):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = (1 - beta ** group["step"] for beta in group["betas"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for key, beta, value in zip(
                    ("exp_avg", "exp_avg_sq"), group["betas"], (parameter.grad, parameter.grad**2), strict=True
                ):
                    if key not in state:
                        state[key] = torch.zeros_like(parameter)
                    state[key].lerp_(value, 1 - beta)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                root = (state["exp_avg_sq"] / second).sqrt() + group["eps"]
                parameter.addcdiv_(state["exp_avg"] / first, root, value=-group["lr"])


with mock.patch.multiple(megatron.core.optimizer, USING_PYTORCH_OPTIMIZER=False, Adam=StepInGroup):
    model, ddp, optimizer = megatron_model.build(TP)
    whole = losses(ddp, optimizer, range(3))
    model, ddp, optimizer = megatron_model.build(TP)
sizes = {"weights": support.weights_bytes(ddp), "optimizer": support.optimizer_bytes(optimizer)}
engine = fake_engine.make(layout, **sizes)
support.adopt(engine, ddp, optimizer)  # Before the first step.
assert engine._lib.used["optimizer"] <= sizes["optimizer"], (engine._lib.used, sizes)
assert losses(ddp, optimizer, range(3)) == whole
engine._check()
for one in support._chained(optimizer):
    assert all(inside(engine, "optimizer", value) for state in one.optimizer.state.values() for value in state.values())

try:  # Another layout is refused by name.
    support.adopt(fake_engine.make([("decoder.other", "bf16", 2, 2)], **sizes), ddp)
    sys.exit("adopted in another layout")
except Exception as error:
    assert "decoder.other is missing" in str(error), error
print("ok", got, flush=True)
