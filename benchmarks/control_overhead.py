#!/usr/bin/env python3
"""What a version costs beside its bytes: updates of a model so small that moving it costs next to nothing.

usage: control_overhead.py BUILD_DIR [--ranks 2,4] [--backend host|cuda] [--versions 400]

Prints a row for each number of ranks and each way of updating: the median and the 90th percentile of whole
versions, the median of the transfer in them, and of what is left: agreements, the comparison of memory with
the books, and what the verification needs. The first version, which connects and allocates, is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "support"))
from sessions import run_in_session  # noqa: E402  pylint: disable=wrong-import-position

WAYS = {
    "weights alone": ["--no-offload", "--verify", "off"],
    "with digests": ["--no-offload"],
}


def versions_of(arguments, ranks, options, path):
    """The report's versions after the first."""
    command = [arguments.mpiexec, "--oversubscribe", "-np", str(ranks),
               os.path.join(arguments.build, "awex-colocate"), "update", "--backend", arguments.backend,
               "--model", "preset:tiny-dense", "--layers", "1", "--optimizer", "none", "--kv-cache", "0",
               "--limits", "off", "--versions", str(arguments.versions), "--json", path, "-q", *options]
    if arguments.backend == "cuda" and ranks > 2:
        command.append("--share-gpu")
    done = run_in_session(command, 300, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
    with open(path, encoding="utf-8") as file:
        return json.load(file)["versions"][1:]


def transfer_seconds(version):
    """Of the slowest rank."""
    return next(phase["seconds"] for phase in version["phases"] if phase["phase"] == "transfer")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--backend", default="host", choices=["host", "cuda"])
    parser.add_argument("--versions", type=int, default=400)
    parser.add_argument("--mpiexec", default="mpirun")
    arguments = parser.parse_args()
    print("| ranks | update | phases | median | 90th percentile | its transfer | the rest |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, arguments.ranks.split(",")):
            for way, options in WAYS.items():
                versions = versions_of(arguments, ranks, options, os.path.join(folder, "report.json"))
                whole = sorted(version["seconds"] * 1e6 for version in versions)
                moving = [transfer_seconds(version) * 1e6 for version in versions]
                rest = [version["seconds"] * 1e6 - part for version, part in zip(versions, moving)]
                print(f"| {ranks} | {way} | {len(versions[0]['phases'])} | {statistics.median(whole):.0f} us "
                      f"| {whole[len(whole) * 9 // 10]:.0f} us | {statistics.median(moving):.0f} us "
                      f"| {statistics.median(rest):.0f} us |", flush=True)


if __name__ == "__main__":
    main()
