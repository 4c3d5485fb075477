#!/usr/bin/env python3
"""An update of a small model on a GPU is clean under compute-sanitizer, on both ranks."""

import re
import subprocess
import sys

RANKS = 2


def main():
    mpiexec, sanitizer, program = sys.argv[1:]
    command = [mpiexec, "--oversubscribe", "-n", str(RANKS), sanitizer, "--error-exitcode", "99",
               program, "update", "--model", "preset:tiny-moe", "--backend", "cuda", "--versions",
               "2", "--verify", "full", "--kv-cache", "4MiB", "--timeout", "200s"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=500, check=False)
    output = done.stdout + done.stderr
    clean = re.findall(r"ERROR SUMMARY: 0 errors", output)
    if done.returncode != 0 or len(clean) != RANKS:
        print(f"exit code {done.returncode}, {len(clean)} of {RANKS} ranks are clean\n{output}")
        return 1
    print(f"ok: {RANKS} ranks are clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
