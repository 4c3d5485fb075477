#!/usr/bin/env python3
"""Checkpoints on storage, and host memory, that is slow and that hangs: only the second fails a job.

usage: slow_storage_test.py MPIEXEC BINARY
"""

import concurrent.futures
import json
import math
import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import mpi_run, output_of  # noqa: E402
from storage import build_storage, through_storage  # noqa: E402

LIMIT_S = 120  # of a whole run: mpirun's start and end take their time on a machine with more to do
TIMEOUT_S = 4
AT_ONCE = 2
DEADLINE_CODE = 4
READS_TO_OPEN = 3  # the header's length, the beginning, the header


VOCABULARY, HIDDEN, INTERMEDIATE = 50_000, 512, 512


def write_large(directory):
    """A checkpoint of zeros without bytes on the disk: one layer and tied embeddings, whose optimizer
    state of 318 MB lies in five chunks."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
              "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 4,
              "num_key_value_heads": 4, "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY,
              "tie_word_embeddings": True}
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"model.layers.0.{norm}"] = (HIDDEN,)
    for matrix in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        shapes[f"model.layers.0.{matrix}_proj"] = (HIDDEN, HIDDEN)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    os.mkdir(directory)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    with open(os.path.join(directory, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


class StorageTest:
    def __init__(self, mpiexec, binary, directory):
        self.mpiexec = mpiexec
        self.library = build_storage(directory)
        self.model = os.path.join(directory, "model")
        output_of([binary, "checkpoint", "--preset", "tiny-dense", "--out", self.model, "-q"])
        self.large = os.path.join(directory, "large")
        write_large(self.large)
        # Row-parallel shards of tp=2 hold some columns of each row.
        self.job = [binary, "update", "--model", self.model, "--backend", "host", "--trainer",
                    "megatron:tp=2", "--inference", "sglang:tp=1", "--limits", "off", "--kv-cache", "0"]

    def run(self, **settings):
        command = [*through_storage(self.library, **settings), *self.job, "--timeout", f"{TIMEOUT_S}s"]
        return mpi_run(self.mpiexec, 4, command, LIMIT_S)

    def slow(self):
        """Loading alone takes longer than the timeout. A read for each row would take minutes."""
        run = self.run(ms=400)
        loaded = re.search(r"loaded the weights: .* in ([\d.]+) s", run.stderr)
        good = (run.code == 0 and re.search(r"(?m)^result +ok$", run.stdout)
                and loaded and float(loaded[1]) > TIMEOUT_S)
        return "slow", run, good

    def hangs(self, after, what):
        run = self.run(hang_rank=1, hang_after=after)
        message = (rf"rank 1 \(.*{what}: .* read, then nothing more for {TIMEOUT_S}(\.0+)? s, "
                   r"from .*\.safetensors \(")
        good = (run.code == DEADLINE_CODE and len(re.findall("error:", run.stderr)) == 1
                and re.search(message, run.stderr))
        return f"hangs while {what}", run, good

    def memory(self, ms, *options):
        command = [*through_storage(self.library, memory_ms=ms), self.job[0], "update", "--model", self.large,
                   "--backend", "host", "--limits", "off", "--kv-cache", "0", "--timeout", f"{TIMEOUT_S}s"]
        return mpi_run(self.mpiexec, 2, [*command, *options], LIMIT_S)

    def slow_memory(self, *options):
        """The optimizer's first offload takes longer than the timeout: two of its blocks at a time."""
        run = self.memory(2000, *options)
        good = run.code == 0 and re.search(r"(?m)^result +ok$", run.stdout)
        return f"slow memory {' '.join(options)}", run, good

    def memory_that_hangs(self):
        run = self.memory(30_000)
        return "memory that hangs", run, run.code == DEADLINE_CODE

    def cases(self):
        size = sum(os.path.getsize(os.path.join(self.model, name)) for name in os.listdir(self.model))
        compared = 2 * READS_TO_OPEN + 2 + (size >> 20)
        return [self.slow, self.slow_memory, lambda: self.slow_memory("--warm-host-memory"),
                self.memory_that_hangs,
                lambda: self.hangs(READS_TO_OPEN - 1, "reading the headers of the checkpoint"),
                lambda: self.hangs(READS_TO_OPEN + 1, "comparing the checkpoints"),
                lambda: self.hangs(compared + 2, "loading the weights")]


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        cases = StorageTest(*sys.argv[1:], directory).cases()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for name, run, good in pool.map(lambda case: case(), cases):
                good = good and not run.left
                failed += not good
                print(f"{'ok' if good else 'FAILED'}: {name}: exit code {run.code} after "
                      f"{run.seconds:.1f} s, left {run.left}", flush=True)
                if not good:
                    print(f"{run.stdout}\n{run.stderr}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
