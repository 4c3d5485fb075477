"""A real FSDPPPOActor of AReaL trains, Transformers serves: areal_updates.py PROGRAM WORK [UPDATES]. On the CPU, by hand.
Needs the wheel, AReaL and what it imports in this Python. A controller calls both in PPOTrainer's order; after
every update inference's logits are those of the checkpoint that AReaL's own `save` wrote of that version."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from qwen3_shape import CONFIG, VOCAB

if sys.argv[1] in ("actor", "rollout"):  # The controller needs neither, as AReaL's does not need weights.
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    TOKENS = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(7))


class Trainer:
    """A worker of AReaL's: its actor, and a batch to train on."""

    def __init__(self, work):
        self.initial = work / "initial"

    def prepare(self):
        """The checkpoint that all begin with."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        torch.manual_seed(1)
        model = Qwen3ForCausalLM(Qwen3Config(**{**CONFIG, "torch_dtype": "float32"}))
        model.save_pretrained(self.initial)
        words = WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="w2", pad_token="w2")
        tokenizer.save_pretrained(self.initial)

    def initialize(self):
        from areal.api import FinetuneSpec, WeightUpdateMeta
        from areal.api.cli_args import OptimizerConfig, PPOActorConfig
        from areal.api.io_struct import SaveLoadMeta

        from awex_colocate.areal.fsdp import FSDPPPOActor

        self.save_meta, self.update_meta = SaveLoadMeta, WeightUpdateMeta
        config = PPOActorConfig(
            experiment_name="test", trial_name="test", path=str(self.initial), backend="fsdp:d1",
            attn_impl="sdpa", dtype="float32", optimizer_dtype="float32", optimizer=OptimizerConfig(lr=3e-3),
        )  # fmt: skip
        self.actor = FSDPPPOActor(config)
        self.actor.create_process_group()
        spec = FinetuneSpec(total_train_epochs=1, dataset_size=1000, train_batch_size=4)
        self.actor.initialize(None, spec)

    def train(self):
        batch = {
            "input_ids": TOKENS,
            "attention_mask": torch.ones_like(TOKENS, dtype=torch.bool),
            "loss_mask": torch.ones_like(TOKENS),
        }
        self.actor.train()
        stats = self.actor.train_batch(
            batch,
            loss_fn=lambda logprobs, entropy, input_, **_: -logprobs.mean(),
            loss_weight_fn=lambda input_: input_["loss_mask"].count_nonzero(),
        )
        return float(stats["grad_norm"])

    def update_weights(self, version):
        self.actor.update_weights(self.update_meta(type="disk").with_version(version))

    def save(self, path):
        self.actor.save(self.save_meta(path=path, weight_format="hf", with_optim=False))

    def offload(self):
        self.actor.offload()

    def onload(self):
        self.actor.onload()


class Rollout:
    """Transformers' model in place of SGLang's, under SGLang's plugin."""

    def __init__(self, work):
        self.initial = work / "initial"

    def launch(self):
        import awex_colocate
        from awex_colocate import sglang

        self.plugin = sglang
        self.model = Qwen3ForCausalLM.from_pretrained(self.initial, dtype=torch.float32)
        self.engine = awex_colocate.attach("inference", os.environ["AWEX_COLOCATE_JOB"], device="host:0")
        self.engine.adopt(self.model)
        sglang._engine = self.engine
        mock.patch.object(sglang, "_struct", return_value=None).start()
        self.memory_saver_adapter = SimpleNamespace(enabled=False)

    def is_fully_idle(self):
        return True

    def flush_cache(self):
        pass

    def offload(self):
        self.plugin._release(None, self, SimpleNamespace(tags=None))

    def onload(self):
        self.plugin._resume(None, self, SimpleNamespace(tags=None))
        return self.engine.version

    def equals(self, path):
        fresh = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            return bool(torch.equal(*(model(input_ids=TOKENS).logits for model in (self.model, fresh))))


def serve(worker):
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print("answer", json.dumps(getattr(worker, name)(*arguments)), flush=True)


class Worker:
    def __init__(self, role, work):
        self.log = open(work / f"{role}.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, __file__, role, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, start_new_session=True,
        )  # fmt: skip

    def __getattr__(self, name):
        def call(*arguments):
            self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("answer "):
                    return json.loads(line.removeprefix("answer "))
                self.log.write(line)
            sys.exit(f"{name} has ended its worker: see {self.log.name}")

        return call


def main(program, work, updates):
    work.mkdir(parents=True)
    job = str(work / "job")
    os.environ.update(
        AWEX_COLOCATE_JOB=job, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29566", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "2", program, "serve", "--job", job,
               "--model", str(work / "initial"), "--trainer", "fsdp:shard=1", "--inference", "hf",
               "--backend", "host", "--attach", "trainer,inference", "--timeout", "10m"]  # fmt: skip
    actor, rollout = Worker("actor", work), Worker("rollout", work)
    processes = [actor.process, rollout.process]
    try:
        actor.prepare()
        with open(work / "serve.log", "wb") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **root}, start_new_session=True)
            )
        actor.initialize()
        rollout.launch()
        rollout.offload()
        actor.offload()
        saved = str(work / "initial")
        for version in range(1, updates + 1):
            rollout.onload()
            assert rollout.equals(saved), "rollouts"
            rollout.offload()
            actor.onload()
            norm = actor.train()
            actor.update_weights(version)
            former, saved = saved, str(work / f"version-{version}")
            actor.save(saved)
            actor.offload()
            served = rollout.onload()
            assert rollout.equals(saved), f"version {version}"
            assert not rollout.equals(former), "nothing was trained"
            rollout.offload()
            print(f"AReaL's version {version}: version {served} of the job, gradient norm {norm:.4f}", flush=True)
        subprocess.run([program, "stop", "--job", job], check=True)
        print(f"ok: {updates} updates, logits equal those of AReaL's checkpoints")
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


if sys.argv[1] == "actor":
    serve(Trainer(Path(sys.argv[2])))
elif sys.argv[1] == "rollout":
    serve(Rollout(Path(sys.argv[2])))
else:
    main(sys.argv[1], Path(sys.argv[2]).resolve(), int((sys.argv[3:] or ["5"])[0]))
