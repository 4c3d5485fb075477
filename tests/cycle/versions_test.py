#!/usr/bin/env python3
"""Five versions with offloading are the five versions without: the optimizer's state feeds the next
weights, so that a byte lost on the way shows in the next digest. Layouts must not matter either, nor
backends: the first run, which the others are compared with, is on host memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile

VERSIONS = 5
MODELS = ["preset:tiny-dense", "preset:tiny-moe"]

# (ranks, trainer, inference, further options)
RUNS = [
    (2, "hf", "hf", ["--no-offload", "--backend", "host"]),
    (2, "megatron:tp=1", "sglang:tp=1", []),
    (4, "megatron:tp=2", "sglang:tp=1", []),
    (4, "megatron:tp=2", "sglang:tp=1", ["--no-offload"]),
    (4, "megatron:tp=1", "sglang:tp=2", ["--verify", "full"]),
    (6, "megatron:tp=3", "sglang:tp=1", []),
    (6, "hf", "sglang:tp=3", ["--no-offload"]),
]


def update(arguments, model, ranks, trainer, inference, options):
    """The JSON report of one update."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report.json")
        command = [arguments.mpiexec, "--oversubscribe", "-n", str(ranks), arguments.program,
                   "update", "--model", model, "--trainer", trainer, "--inference", inference,
                   "--versions", str(VERSIONS), "--kv-cache", "4MiB", "--limits", "off", "-q",
                   "--timeout", "100s", "--json", path, *options]
        if "--backend" not in options:
            command += ["--backend", arguments.backend, *(f"--{o}" for o in arguments.options)]
        done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
        with open(path, encoding="utf-8") as file:
            return json.load(file)


def digests_of(report):
    """The digests of all versions, after checking that the report says what it should."""
    assert report["ok"] is True and report["exit_code"] == 0 and report["error"] is None, report
    assert report["memory"]["leaked_bytes"] <= 64 << 20, report["memory"]
    assert [version["version"] for version in report["versions"]] == list(range(1, VERSIONS + 1))
    for version in report["versions"]:
        assert version["committed"] is True and version["digest"]["mismatched"] == 0, version
    return [version["digest"]["model"] for version in report["versions"]]


def digest_command(arguments, model):
    """What `digest` says of a checkpoint of a preset."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint")
        subprocess.run([arguments.program, "checkpoint", "--preset", model.removeprefix("preset:"),
                        "--out", path], check=True, capture_output=True, timeout=100)
        done = subprocess.run([arguments.program, "digest", path], check=True, text=True,
                              capture_output=True, timeout=100)
    return done.stdout.strip().splitlines()[-1].split()[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--least-ranks", type=int, default=2)
    parser.add_argument("--most-ranks", type=int, default=6)
    parser.add_argument("--options", nargs="*", default=[], help="for all but the first run, without their dashes")
    arguments = parser.parse_args()
    for model in MODELS:
        first = digest_command(arguments, model)
        known = None
        for ranks, trainer, inference, options in RUNS:
            is_reference = known is None
            if not is_reference and not arguments.least_ranks <= ranks <= arguments.most_ranks:
                continue
            digests = digests_of(update(arguments, model, ranks, trainer, inference, options))
            known = known or digests
            assert digests[0] == first, f"version 1 has {digests[0]}, the checkpoint {first}"
            assert len(set(digests)) == VERSIONS, f"versions do not differ: {digests}"
            assert digests == known, f"{trainer} -> {inference} {options}: {digests}, not {known}"
            print(f"ok: {model} {trainer} -> {inference} on {ranks} ranks {' '.join(options)}",
                  flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
