#!/usr/bin/env python3
"""Checkpoints on storage that is slow and on storage that hangs: only the second fails a job.

usage: slow_storage_test.py MPIEXEC BINARY
"""

import concurrent.futures
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


class StorageTest:
    def __init__(self, mpiexec, binary, directory):
        self.mpiexec = mpiexec
        self.library = build_storage(directory)
        self.model = os.path.join(directory, "model")
        output_of([binary, "checkpoint", "--preset", "tiny-dense", "--out", self.model, "-q"])
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

    def cases(self):
        size = sum(os.path.getsize(os.path.join(self.model, name)) for name in os.listdir(self.model))
        compared = 2 * READS_TO_OPEN + 2 + (size >> 20)
        return [self.slow,
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
