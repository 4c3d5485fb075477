"""A rank of a trainer: trainer.py KIND JOB WORK UPDATES READERS, with RANK and WORLD_SIZE in its environment. KIND is
hf (Transformers), fsdp2 (the same, sharded) or megatron:TP (megatron-core with DDP and DistributedOptimizer).
Saves every version as a checkpoint, hands it over, waits until READERS processes have used it, and writes its
losses to WORK/losses-RANK.json."""

import json
import os
import sys
from pathlib import Path

import torch
from files import PATIENCE_S, get, put

import awex_colocate
import awex_colocate.torch as support

KIND, JOB, WORK = sys.argv[1], sys.argv[2], Path(sys.argv[3])
UPDATES, READERS = int(sys.argv[4]), int(sys.argv[5])
RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Transformers:
    """Qwen3 with AdamW, whole on one rank, or FSDP2's shards of it on several."""

    def __init__(self):
        from transformers import Qwen3ForCausalLM

        self.model = Qwen3ForCausalLM.from_pretrained(WORK / "initial")
        if KIND == "fsdp2":
            self.shard()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)

    def shard(self):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        torch.distributed.init_process_group("gloo")
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in [*self.model.model.layers, self.model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)

    def memory(self):
        optimizer = support.optimizer_bytes(self.optimizer, self.model)
        return {"weights": support.weights_bytes(self.model), "optimizer": optimizer}

    def adopt(self, engine):
        engine.adopt(self.model)
        engine.adopt_optimizer(self.optimizer)

    def save(self, folder):
        if KIND == "hf":
            self.model.save_pretrained(folder)
            return
        whole = {name: parameter.full_tensor() for name, parameter in self.model.named_parameters()}
        if RANK == 0:
            save_whole(whole, folder)

    def gradients(self, step):
        generator = torch.Generator().manual_seed(step * RANKS + RANK)
        tokens = torch.randint(0, 1000, (4, 32), generator=generator)
        loss = self.model(input_ids=tokens, labels=tokens).loss
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()


class Megatron:
    def __init__(self):
        from on_cpu import pretend

        pretend()
        import megatron_checkpoint
        import megatron_model
        from safetensors.torch import load_file

        self.build, self.checkpoint = megatron_model, megatron_checkpoint
        self.model, self.ddp, self.optimizer = megatron_model.build(int(KIND.partition(":")[2]))
        whole = load_file(WORK / "initial" / "model.safetensors")
        megatron_checkpoint.load(self.model, whole)
        self.optimizer.reload_model_params()
        self.shapes = {name: tensor.shape for name, tensor in whole.items()}

    def memory(self):
        import awex_colocate.megatron as helper

        optimizer = helper.optimizer_bytes(self.optimizer)
        return {"weights": helper.weights_bytes(self.ddp), "optimizer": optimizer}

    def adopt(self, engine):
        import awex_colocate.megatron as helper

        helper.adopt(engine, self.ddp, self.optimizer)

    def save(self, folder):
        whole = self.checkpoint.gather(self.model, self.shapes)
        if RANK == 0:
            save_whole(whole, folder)

    def gradients(self, step):
        return self.build.gradients(self.ddp, self.optimizer, step)


def save_whole(tensors, folder):
    """As Transformers would, without a model of its own."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((WORK / "initial" / "config.json").read_bytes())
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = Megatron() if KIND.startswith("megatron") else Transformers()
    engine = awex_colocate.attach(
        "trainer", JOB, device=f"host:{RANK}", memory=trainer.memory(), timeout=PATIENCE_S
    )
    trainer.adopt(engine)
    engine.seal(PATIENCE_S)
    losses = []
    for version in range(1, UPDATES + 1):
        if READERS:
            trainer.save(WORK / "checkpoints" / str(version))
        served = engine.hand_over(PATIENCE_S)
        assert served == version, (served, version)
        for reader in range(READERS):
            get(WORK / f"served-{reader}" / str(version))
        engine.take_back(PATIENCE_S)
        losses.append(trainer.gradients(version))
        with engine.writing():
            trainer.optimizer.step()
        print("step", version, losses[-1], flush=True)
    (WORK / f"losses-{RANK}.json").write_text(json.dumps(losses))
    put(WORK / f"trained-{RANK}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # Who leaves first would break the others' connections.


if __name__ == "__main__":
    main()
