#!/usr/bin/env python3
"""Five versions with offloading are the five versions without: the optimizer's state feeds the next
weights, so that a byte lost on the way shows in the next digest. Layouts must not matter either, nor
backends: the run that the others are compared with is on host memory."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

VERSIONS = 5

# (ranks, trainer, inference, further options)
REFERENCE = (2, "hf", "hf", ["--no-offload", "--backend", "host"])
RUNS = [
    (2, "megatron:tp=1", "sglang:tp=1", []),
    (4, "megatron:tp=2", "sglang:tp=1", []),
    (4, "megatron:tp=2", "sglang:tp=1", ["--no-offload"]),
    (4, "megatron:tp=1", "sglang:tp=2", ["--verify", "full"]),
    (4, "megatron:tp=2", "sglang:tp=2", ["--warm-host-memory"]),
    (6, "megatron:tp=3", "sglang:tp=1", ["--exchange", "peer"]),
    (6, "hf", "sglang:tp=3", ["--no-offload"]),
]

# Tensor, pipeline and expert parallel mixed.
MIXED_DENSE = [
    (6, "megatron:tp=1,pp=3", "sglang:tp=3", []),
    (8, "megatron:tp=2,pp=2", "vllm:tp=2,pp=2", []),
    (12, "megatron:tp=3,pp=2", "sglang:tp=2,pp=3", []),
    (16, "megatron:tp=2,pp=2", "sglang:tp=4,pp=2", []),
    (16, "fsdp:shard=4", "vllm:tp=2,dp=2", []),
]
MIXED_EXPERTS = [
    (6, "megatron:tp=1,pp=3", "sglang:tp=3,ep=3", []),
    (8, "megatron:tp=2,pp=2,ep=2,etp=1", "sglang:tp=4,ep=2", []),
    (12, "megatron:tp=3,pp=2,ep=3,etp=1", "vllm:tp=2,dp=3,ep=on", []),
    (16, "megatron:tp=2,pp=2,ep=4,etp=1", "sglang:tp=4,ep=4,pp=2", []),
    (16, "megatron:tp=2,pp=2,ep=2,etp=2", "sglang:tp=8,ep=4,attn_dp=2", []),
]

# (model, layers, runs)
CASES = [
    ("preset:tiny-dense", 12, RUNS),
    ("preset:tiny-moe", 12, RUNS[3::2]),
    ("preset:tiny-dense", 6, MIXED_DENSE),
    ("preset:tiny-moe", 6, MIXED_EXPERTS),
    ("preset:tiny-mla", 6, MIXED_EXPERTS[::2]),
]


def update(arguments, model, layers, run):
    """The JSON report of one update."""
    ranks, trainer, inference, options = run
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report.json")
        command = [arguments.mpiexec, "--oversubscribe", "-n", str(ranks), arguments.program,
                   "update", "--model", model, "--layers", str(layers), "--trainer", trainer,
                   "--inference", inference,
                   "--versions", str(VERSIONS), "--kv-cache", "4MiB", "--limits", "off", "-q",
                   "--timeout", "100s", "--json", path, *options]
        if "--backend" not in options:
            command += ["--backend", arguments.backend, *(f"--{o}" for o in arguments.options)]
        done = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    lines = re.sub(r"\n# {5,}", " ", done.stdout).splitlines()  # what is folded
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("# note ")] == \
        report["notes"], done.stdout
    # SGLang's latent attention needs a step of its own after an update.
    needs_step = "mla" in model and inference.startswith("sglang")
    assert any("post_load_weights()" in note for note in report["notes"]) == needs_step, report
    return report


def digests_of(report):
    """The digests of all versions, after checking that the report says what it should."""
    assert report["ok"] is True and report["exit_code"] == 0 and report["error"] is None, report
    assert report["memory"]["leaked_bytes"] <= 64 << 20, report["memory"]
    assert [version["version"] for version in report["versions"]] == list(range(1, VERSIONS + 1))
    for version in report["versions"]:
        assert version["committed"] is True and version["digest"]["mismatched"] == 0, version
    return [version["digest"]["model"] for version in report["versions"]]


def digest_command(arguments, model, layers):
    """What `digest` says of a checkpoint of a preset."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint")
        subprocess.run([arguments.program, "checkpoint", "--preset", model.removeprefix("preset:"),
                        "--layers", str(layers), "--out", path], check=True, capture_output=True, timeout=100)
        done = subprocess.run([arguments.program, "digest", path], check=True, text=True,
                              capture_output=True, timeout=100)
    return done.stdout.strip().splitlines()[-1].split()[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--least-ranks", type=int, default=2)
    parser.add_argument("--most-ranks", type=int, default=16)
    parser.add_argument("--options", nargs="*", default=[], help="for all but the first run, without their dashes")
    arguments = parser.parse_args()
    for model, layers, runs in CASES:
        runs = [run for run in runs if arguments.least_ranks <= run[0] <= arguments.most_ranks]
        if not runs:
            continue
        first = digest_command(arguments, model, layers)
        known = digests_of(update(arguments, model, layers, REFERENCE))
        assert known[0] == first, f"version 1 has {known[0]}, the checkpoint {first}"
        assert len(set(known)) == VERSIONS, f"versions do not differ: {known}"
        for run in runs:
            digests = digests_of(update(arguments, model, layers, run))
            ranks, trainer, inference, options = run
            assert digests == known, f"{trainer} -> {inference} {options}: {digests}, not {known}"
            print(f"ok: {model} {trainer} -> {inference} on {ranks} ranks {' '.join(options)}",
                  flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
