"""A rank of a trainer: trainer.py KIND JOB WORK UPDATES READERS FRESH, with RANK and WORLD_SIZE in its environment. KIND is
hf (Transformers), fsdp2 (the same, sharded) or megatron:TP (megatron-core with DDP and DistributedOptimizer).
Its memory is what ENGINES_MEMORY says (memories.py). Saves the FRESH last versions as checkpoints, hands every version
over, waits until READERS processes have used it, and writes its losses to WORK/losses-RANK.json. On a GPU it compares
what NVML tells with what was handed over."""

import json
import os
import sys
from pathlib import Path

import memories
import torch
from files import DEVICE, ON_GPU, PATIENCE_S, get, put

import awex_colocate
import awex_colocate.torch as support

KIND, JOB, WORK = sys.argv[1], sys.argv[2], Path(sys.argv[3])
UPDATES, READERS, FRESH = map(int, sys.argv[4:7])
RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Transformers:
    """Qwen3 with AdamW, whole on one rank, or FSDP2's shards of it on several."""

    def __init__(self):
        from transformers import Qwen3ForCausalLM

        # Attention of kernels whose gradients are the same each time.
        how = {"attn_implementation": "eager"} if ON_GPU else {}
        if ON_GPU and KIND == "hf":
            how["dtype"] = torch.bfloat16
        self.model = Qwen3ForCausalLM.from_pretrained(WORK / "initial", **how)
        if ON_GPU and memories.KIND != "pool":
            self.model.to(DEVICE)
        if KIND == "fsdp2":
            self.shard()
        # In a pool the first step makes the state and, fused, nothing else.
        fused = True if memories.KIND == "pool" else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, fused=fused)

    def shard(self):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        kind = torch.device(DEVICE).type if ON_GPU else "cpu"
        torch.distributed.init_process_group("nccl" if ON_GPU else "gloo")
        mesh = torch.distributed.device_mesh.init_device_mesh(kind, (RANKS,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in [*self.model.model.layers, self.model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)

    def memory(self):
        optimizer = support.optimizer_bytes(self.optimizer, self.model)
        return {"weights": support.weights_bytes(self.model), "optimizer": optimizer}

    def adopt(self, engine):
        engine.adopt(self.model)
        engine.adopt_optimizer(self.optimizer)

    def register(self, engine, optimizer=None):
        engine.register(self.model)
        if optimizer is not None:
            engine.adopt_optimizer(optimizer)

    def leave(self):
        for parameter in self.model.parameters():
            parameter.data = memories.away(parameter.data)

    def come_back(self):
        for parameter in self.model.parameters():
            parameter.data = memories.back(parameter.data)

    def save(self, folder):
        if KIND == "hf":
            self.model.save_pretrained(folder)
            return
        whole = {name: parameter.full_tensor() for name, parameter in self.model.named_parameters()}
        if RANK == 0:
            save_whole(whole, folder)

    def gradients(self, step):
        generator = torch.Generator().manual_seed(step * RANKS + RANK)
        tokens = torch.randint(0, 1000, (4, 32), generator=generator).to(self.model.device)
        loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return loss.item()

    def forget_gradients(self):
        self.optimizer.zero_grad(set_to_none=True)


class Megatron:
    def __init__(self):
        if not ON_GPU:
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

    def register(self, engine, optimizer=None):
        import awex_colocate.megatron as helper

        helper.register(engine, self.ddp, optimizer)

    def leave(self):
        for buffer in self.ddp.buffers:
            buffer.offload_to_cpu(move_grads=False)

    def come_back(self):
        for buffer in self.ddp.buffers:
            buffer.reload_from_cpu(move_grads=False)

    def save(self, folder):
        whole = self.checkpoint.gather(self.model, self.shapes)
        if RANK == 0:
            save_whole(whole, folder)

    def gradients(self, step):
        return self.build.gradients(self.ddp, self.optimizer, step)

    def forget_gradients(self):
        """Its buffers of gradients stay."""


def save_whole(tensors, folder):
    """As Transformers would, without a model of its own."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((WORK / "initial" / "config.json").read_bytes())
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


class Meter:
    """What is in use of the whole GPU, as NVML tells it, against the memory that changes hands."""

    #: Kernels' code and workspaces that come with a first use, and pages of 2 MiB.
    SLACK_BYTES = 128 << 20

    def __init__(self, engine, model):
        import pynvml

        pynvml.nvmlInit()
        self.gpu, self.nvml = pynvml.nvmlDeviceGetHandleByIndex(torch.device(DEVICE).index), pynvml
        # Megatron's parameters are this rank's shards, FSDP2's the whole.
        shards = int(KIND.partition(":")[2] or 1)
        weights = sum(p.numel() * 2 for p in model.parameters())
        # Of a vLLM in fp8; its scales are few.
        halved = sum(p.numel() for n, p in model.named_parameters() if n.endswith("_proj.weight"))
        served = weights - (halved if os.environ.get("ENGINES_FP8") else 0)
        # Norms, which all have, are small.
        served = served * shards // int(os.environ.get("ENGINES_INFERENCE_TP") or 1)
        mine = sum(engine.memory(tag).bytes for tag in ("weights", "optimizer"))  # None for weights of its own.
        if memories.OWN == "moves":
            mine += weights
        self.freed = mine - served - int(os.environ["ENGINES_KV_BYTES"])

    def used(self):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return self.nvml.nvmlDeviceGetMemoryInfo(self.gpu).used

    def compare(self, before, after):
        """Once inference has given its memory away: in the first version it is there all the time."""
        print(f"NVML: {before / 1e9:.3f} GB in use, {after / 1e9:.3f} GB once handed over; the books say that "
              f"{self.freed / 1e9:.3f} GB more are gone than came", flush=True)
        if abs(before - after - self.freed) > self.SLACK_BYTES:
            sys.exit("NVML does not tell what the books say")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if ON_GPU:
        torch.cuda.set_device(DEVICE)
        torch.use_deterministic_algorithms(True, warn_only=True)
    trainer = Megatron() if KIND.startswith("megatron") else Transformers()
    engine = awex_colocate.attach(
        "trainer", JOB, device=DEVICE if ON_GPU else f"host:{RANK}", memory=memories.sizes(trainer.memory()),
        own_weights=memories.OWN, timeout=PATIENCE_S,
    )  # fmt: skip
    memories.hold(engine, trainer)
    engine.seal(PATIENCE_S)
    losses, meter = [], Meter(engine, trainer.model) if ON_GPU and READERS else None
    for version in range(1, UPDATES + 1):
        if READERS and version > UPDATES - FRESH:
            trainer.save(WORK / "checkpoints" / str(version))
        before = meter and meter.used()
        served = engine.hand_over(PATIENCE_S)
        assert served == version, (served, version)
        for reader in range(READERS):
            get(WORK / f"served-{reader}" / str(version))
        if meter and version > 1:
            meter.compare(before, meter.used())
            put(WORK / "measured" / str(version))
        engine.take_back(PATIENCE_S, optimizer=False)
        losses.append(trainer.gradients(version))
        engine.take_back(PATIENCE_S)
        with engine.writing(), memories.first_state(engine, version):
            trainer.optimizer.step()
        trainer.forget_gradients()
        print("step", version, losses[-1], flush=True)
    (WORK / f"losses-{RANK}.json").write_text(json.dumps(losses))
    put(WORK / f"trained-{RANK}")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # Who leaves first would break the others' connections.


if __name__ == "__main__":
    main()
