#!/usr/bin/env python3
"""Checkpoints on storage, and host memory, that is slow and that hangs: only the second fails a job.

usage: slow_storage_test.py MPIEXEC BINARY
"""

import concurrent.futures
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import Run, mpi_run, output_of  # noqa: E402
from storage import build_storage, environment_of, through_storage  # noqa: E402

LIMIT_S = 120  # of a whole run: mpirun's start and end take their time on a machine with more to do
TIMEOUT_S = 4
MEMORY_TIMEOUT_S = 8  # several hundred MB are touched meanwhile
AT_ONCE = 3  # they wait for most of their time
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
        self.directory = directory
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

    def many_files(self):
        """They are opened side by side: one after the other, reading their headers takes 33 s."""
        model = os.path.join(self.directory, "many")
        output_of([self.job[0], "checkpoint", "--preset", "tiny-dense", "--out", model, "-q",
                   "--max-shard-size", "1KiB"])
        files = [name for name in os.listdir(model) if name.endswith(".safetensors")]
        assert len(files) > 100, files
        config = pathlib.Path(model, "config.json")
        layers = json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"]
        # Another layer than the files have is found when all are open.
        config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")),
                                      "num_hidden_layers": layers + 1}), encoding="utf-8")
        environment = environment_of(self.library, ms=100)
        start = time.monotonic()
        done = subprocess.run([self.job[0], "digest", model], env=environment, capture_output=True,
                              text=True, timeout=LIMIT_S, check=False)
        seconds = time.monotonic() - start
        good = done.returncode == 2 and "has no tensor" in done.stderr
        run = Run(done.returncode, done.stdout, done.stderr, (start, start + seconds), [])
        return "many files", run, good and seconds < len(files) * READS_TO_OPEN * 0.1 / 2

    def memory(self, ms, *options):
        command = [*through_storage(self.library, memory_ms=ms), self.job[0], "update", "--model", self.large,
                   "--backend", "host", "--limits", "off", "--kv-cache", "0", "--timeout", f"{MEMORY_TIMEOUT_S}s"]
        return mpi_run(self.mpiexec, 2, [*command, *options], LIMIT_S)

    def slow_memory(self, *options):
        """The optimizer's first offload takes longer than the timeout: two of its blocks at a time."""
        run = self.memory(4000, *options)
        good = run.code == 0 and re.search(r"(?m)^result +ok$", run.stdout)
        return f"slow memory {' '.join(options)}", run, good

    def memory_that_hangs(self):
        run = self.memory(30_000)
        return "memory that hangs", run, run.code == DEADLINE_CODE

    def cases(self):
        size = sum(os.path.getsize(os.path.join(self.model, name)) for name in os.listdir(self.model))
        compared = READS_TO_OPEN + 1 + (size >> 20)  # a header is read once
        return [self.slow, self.slow_memory, lambda: self.slow_memory("--warm-host-memory"),
                self.memory_that_hangs,
                lambda: self.hangs(READS_TO_OPEN - 1, "reading the headers of the checkpoint"),
                lambda: self.hangs(READS_TO_OPEN, "comparing the checkpoints"),
                lambda: self.hangs(compared, "loading the weights"), self.many_files]


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
