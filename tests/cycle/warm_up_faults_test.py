#!/usr/bin/env python3
"""A rank that is killed or told to end while it prepares host memory in the background: the job ends at
once, and nothing is left of it."""

import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import mpi_run  # noqa: E402  pylint: disable=wrong-import-position

TIMEOUT_S = 60
AT_ONCE_S = 25  # from the signal to mpirun's end
LIMIT_S = 150
# Of the trainer's anonymous memory: host memory for the optimizer comes to 2.06 GB, all else to less
# than the least.
LEAST_BYTES, MOST_BYTES = 600 << 20, 1900 << 20

# (signal, exit code, pattern on stderr)
CASES = [(signal.SIGKILL, 137, r"SIGKILL|signal 9"),
         (signal.SIGTERM, 1, r"rank 0 \(trainer.*in phase load: told to end by SIGTERM")]


def anonymous_bytes(pid):
    """What a process holds of memory of its own; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            found = re.search(r"^RssAnon:\s+(\d+) kB", status.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def disturb_with(number, met):
    """Signals the first rank that is seen in the midst of its preparation, and adds its bytes and the time
    to `met`."""

    def disturb(rank_pids):
        give_up = time.monotonic() + LIMIT_S
        pids = []
        while not met and time.monotonic() < give_up:
            pids = pids if len(pids) >= 2 else rank_pids()
            for pid in pids:
                held = anonymous_bytes(pid)
                if LEAST_BYTES < held < MOST_BYTES:
                    os.kill(pid, number)
                    met.extend([held, time.monotonic()])
                    break
            time.sleep(0.001)

    return disturb


def main():
    mpiexec, program = sys.argv[1:]
    failed = 0
    command = [program, "update", "--model", "preset:qwen3-0.6b", "--layers", "1", "--backend", "host",
               "--kv-cache", "1MiB", "--limits", "off", "--warm-host-memory",
               "--timeout", f"{TIMEOUT_S}s"]
    for number, code, message in CASES:
        met = []
        run = mpi_run(mpiexec, 2, command, LIMIT_S, disturb_with(number, met))
        is_right = (run.code == code and re.search(message, run.stderr) and met
                    and run.end - met[1] < AT_ONCE_S)
        if is_right and not run.left:
            print(f"ok: {number.name} after {met[0] >> 20} MiB: {run.seconds:.1f} s", flush=True)
            continue
        failed += 1
        print(f"FAILED: {number.name} at {met}: exit code {run.code} after {run.seconds:.1f} s, left "
              f"{run.left}\n{run.stdout}\n{run.stderr}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
