"""FSDP2's shards move, padded ones too, and training goes on as it would have: under torchrun, any ranks."""

import os
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
import fake_engine  # noqa: E402

import awex_colocate.torch as support  # noqa: E402
from awex_colocate import WrongRequest  # noqa: E402

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
RANK, RANKS = torch.distributed.get_rank(), torch.distributed.get_world_size()
MESH = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))


class Block(nn.Module):
    def __init__(self, odd):
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.up = nn.Linear(64, odd, bias=False)
        self.down = nn.Linear(odd, 64, bias=False)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, odd, tied):
        super().__init__()
        self.embed = nn.Embedding(128, 64)
        self.blocks = nn.ModuleList(Block(odd) for _ in range(3))
        self.head = nn.Linear(64, 128, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.router = nn.Linear(64, 1, bias=False)  # One row: most ranks hold none of it.

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x + self.router(x))


def build(odd, tied):
    torch.manual_seed(0)
    model = Model(odd, tied)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=MESH, mp_policy=policy)
    fully_shard(model, mesh=MESH, mp_policy=policy)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def losses(model, optimizer, steps):
    found = []
    for step in steps:
        tokens = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(step * RANKS + RANK))
        loss = F.cross_entropy(model(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def inside(engine, tag, tensor):
    begin = engine.memory(tag).address
    return begin <= tensor.data_ptr() < begin + engine.memory(tag).bytes


def layout_of(model):
    """What `--trainer fsdp` lists: this rank's rows, nothing for none."""
    found = []
    for name, parameter in model.named_parameters():
        local = parameter._local_tensor
        if local.numel():
            found.append((name, "f32", local.shape[0], local.shape[1] if local.dim() == 2 else 1))
    return found


for odd in (64 * RANKS, 257):
    for tied in (False, True):
        for before in (0, 2):  # Steps taken before it is adopted.
            want = losses(*build(odd, tied), range(5))
            model, optimizer = build(odd, tied)
            got = losses(model, optimizer, range(before))
            sizes = {
                "weights": support.weights_bytes(model),
                "optimizer": support.optimizer_bytes(optimizer, model),
            }
            engine = fake_engine.make(layout_of(model), **sizes)
            support.adopt(engine, model)
            support.adopt_optimizer(engine, optimizer)
            got += losses(model, optimizer, range(before, 5))
            engine._check()
            assert got == want, (odd, tied, before, got, want)
            for parameter in model.parameters():
                if parameter._local_tensor.numel():
                    assert inside(engine, "weights", parameter._local_tensor)
                    for key in ("exp_avg", "exp_avg_sq"):
                        assert inside(engine, "optimizer", optimizer.state[parameter][key]._local_tensor)
            assert len({name for name in engine._lib.declared if name in dict(model.named_parameters())}) == len(
                engine.layout()
            )

# Shards of one's own are declared where they are, and stay there.
for tied in (False, True):
    want = losses(*build(257, tied), range(3))
    model, optimizer = build(257, tied)
    engine = fake_engine.make(layout_of(model), optimizer=support.optimizer_bytes(optimizer, model), own="stays")
    support.register(engine, model)
    support.adopt_optimizer(engine, optimizer)
    assert losses(model, optimizer, range(3)) == want, tied
    engine._check()
    shards = {name: p._local_tensor for name, p in model.named_parameters() if p._local_tensor.numel()}
    assert {name: lent[-1] for name, lent in engine._lib.lent.items()} == {n: s.data_ptr() for n, s in shards.items()}
    assert not [name for name in engine._lib.declared if name.endswith(".master")], engine._lib.declared

model, _ = build(257, False)
wrong = [("blocks.0.up.weight", "bf16", 3, 64), *layout_of(model)[1:]]
try:
    support.adopt(fake_engine.make(wrong, weights=support.weights_bytes(model)), model)
    sys.exit("adopted in another layout")
except WrongRequest as error:
    assert "embed.weight" in str(error) and "is not in the layout" in str(error), error
torch.distributed.destroy_process_group()
print("ok", flush=True)
