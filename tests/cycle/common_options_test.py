#!/usr/bin/env python3
"""Launches of several programs in which the roles were given different options end at once with exit
code 2, naming both sides."""

import subprocess
import sys

# (option and value of the trainer, of the inference rank, what the message must say)
CASES = [
    (["--versions", "2"], ["--versions", "3"], "rank 0 has --versions 2, rank 1 has --versions 3"),
    (["--verify", "off"], [], "rank 0 has --verify off, rank 1 has --verify digest"),
    (["--optimizer", "none"], [], "--optimizer none"),
    (["--kv-cache", "0"], ["--kv-cache", "1MiB"], "rank 1 has --kv-cache 1048576"),
    (["--no-offload"], [], "rank 0 has offload off, rank 1 has offload on"),
    (["--exchange", "nccl"], [], "rank 0 has --exchange nccl, rank 1 has --exchange auto"),
    (["--warm-host-memory"], [], "rank 1 has --warm-host-memory off"),
    ([], ["--inference", "hf"], "rank 1 has --inference hf"),
    (["--layers", "1"], ["--layers", "2"], "rank 0 and rank 1 do not read the same model"),
]


def main():
    mpiexec, program = sys.argv[1:]
    failed = 0
    for trainer, inference, message in CASES:
        common = [program, "update", "--model", "preset:tiny-dense", "--backend", "host",
                  "--limits", "off"]
        command = [mpiexec, "--oversubscribe",
                   "-n", "1", *common, "--role", "trainer", *trainer, ":",
                   "-n", "1", *common, "--role", "inference", *inference]
        done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
        if done.returncode == 2 and message in done.stderr and not done.stdout:
            print(f"ok: {message}", flush=True)
            continue
        failed += 1
        print(f"FAILED: {trainer} against {inference}: exit code {done.returncode}, not 2 with "
              f"'{message}'\n{done.stdout}\n{done.stderr}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
