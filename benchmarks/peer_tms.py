#!/usr/bin/env python3
"""torch_memory_saver on the bytes of one trainer: pause and resume, in seconds.

usage: peer_tms.py OUT.json MODEL WARM_CYCLES KV_BYTES

Everything measured is the package's own code; from here come tensors of the trainer's sizes. The
process runs itself once more under the package's LD_PRELOAD, twice: as the package comes, where
every pause pins host memory anew, and with retain_cpu_backup, where the first pause pins and later
ones use it again. Weights and optimizer (fp32 master weights and two moments) are two tags with a
backup in host memory, the KV cache is a tag without. After the last cycle bytes are compared.
"""
import contextlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

from peer_shapes import MODELS, trainer_tensors

FILL = 0.625  # Exact in bf16 and fp32.


def cuda_runtime_folders():
    """Where PyTorch's own CUDA runtime lies: what is preloaded must find the same one."""
    import torch
    major = torch.version.cuda.split(".")[0]
    packages = pathlib.Path(torch.__file__).parent.parent / "nvidia"
    return sorted({str(path.parent) for path in packages.glob(f"*/lib/libcudart.so.{major}")})


def run_preloaded(mode, out, arguments):
    from torch_memory_saver import configure_subprocess
    known = os.environ.get("LD_LIBRARY_PATH")
    folders = cuda_runtime_folders() + ([known] if known else [])
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}
    with configure_subprocess():
        environment["LD_PRELOAD"] = os.environ["LD_PRELOAD"]
    subprocess.run([sys.executable, __file__, "--mode", mode, out, *arguments], env=environment,
                   stdout=sys.stderr, check=True)


class Clock:
    """Seconds of finished work by phase and cycle."""

    def __init__(self):
        self.cycles = []

    @contextlib.contextmanager
    def phase(self, name):
        import torch
        torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        self.cycles[-1][name] = time.perf_counter() - start


def allocate(saver, model, kv_bytes):
    """By tag; as many tensors as the trainer has, three of them for each in the optimizer."""
    import torch
    tensors = {"weights": [], "optimizer": [], "kv_cache": []}
    with saver.region(tag="weights", enable_cpu_backup=True):
        for _, shape in trainer_tensors(model):
            tensors["weights"].append(torch.full(shape, FILL, dtype=torch.bfloat16, device="cuda"))
    with saver.region(tag="optimizer", enable_cpu_backup=True):
        for _, shape in trainer_tensors(model):
            for _ in range(3):
                tensors["optimizer"].append(torch.full(shape, FILL, device="cuda"))
    with saver.region(tag="kv_cache"):
        for _ in range(2 * model.layers):
            tensors["kv_cache"].append(
                torch.empty(kv_bytes // (2 * model.layers), dtype=torch.uint8, device="cuda"))
    return tensors


def cycle(saver, clock):
    clock.cycles.append({})
    for tag in ("optimizer", "weights"):
        with clock.phase(f"offload {tag}"):
            saver.pause(tag)
    for tag in ("weights", "optimizer"):
        with clock.phase(f"resume {tag}"):
            saver.resume(tag)
    with clock.phase("discard kv_cache"):
        saver.pause("kv_cache")
    with clock.phase("resume kv_cache"):
        saver.resume("kv_cache")


def check(tensors):
    for tag in ("weights", "optimizer"):
        for index, tensor in enumerate(tensors[tag]):
            if not bool((tensor == FILL).all()):
                sys.exit(f"error: tensor {index} of {tag} came back with other bytes")


def measure(mode, out, model_name, warm_cycles, kv_bytes):
    from torch_memory_saver import torch_memory_saver as saver
    model = MODELS[model_name]
    saver.retain_cpu_backup = mode == "retained"
    tensors = allocate(saver, model, int(kv_bytes))
    clock = Clock()
    # Without retaining, every cycle is a first one.
    for _ in range(1 + int(warm_cycles) if mode == "retained" else 1):
        cycle(saver, clock)
    check(tensors)
    sizes = {tag: sum(t.nbytes for t in of) for tag, of in tensors.items()}
    pathlib.Path(out).write_text(json.dumps({"cycles": clock.cycles, "bytes": sizes}),
                                 encoding="utf-8")


def main():
    if sys.argv[1] == "--mode":
        measure(*sys.argv[2:])
        return
    out = pathlib.Path(sys.argv[1])
    report = {"version": importlib.metadata.version("torch_memory_saver")}
    for mode in ("default", "retained"):
        part = out.with_suffix(f".{mode}.json")
        run_preloaded(mode, str(part), sys.argv[2:])
        report[mode] = json.loads(part.read_text(encoding="utf-8"))
    out.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
