#!/usr/bin/env python3
"""Launches of several programs in which the roles were given different options end at once with exit
code 2, naming both sides."""

import os
import shutil
import subprocess
import sys
import tempfile

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


def altered(directory, name, path, at, text):
    """A copy of a checkpoint with the bytes of one file altered from `at` on."""
    copy = os.path.join(directory, name)
    shutil.copytree(os.path.join(directory, "model"), copy)
    with open(os.path.join(copy, path), "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(text)
    return copy


def checkpoint_cases(program, directory):
    """Trainers that read other bytes of the same shapes would make a model that nobody trained."""
    model = os.path.join(directory, "model")
    subprocess.run([program, "checkpoint", "--preset", "tiny-dense", "--out", model, "--quiet"],
                   check=True)
    size = os.path.getsize(os.path.join(model, "config.json"))
    differ = "rank 0 and rank 1 read different checkpoints: "
    return [
        (["--model", model],
         ["--model", altered(directory, "weights", "model.safetensors", -1000, b"awex")],
         differ + "model.safetensors has the same size and other weights"),
        (["--model", model], ["--model", altered(directory, "config", "config.json", size, b"\n")],
         differ + f"config.json has {size} and {size + 1} bytes"),
        (["--model", "preset:tiny-dense"], ["--model", model],
         differ + "the first has no further file, the second config.json"),
    ]


def main():
    mpiexec, program = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        return run(mpiexec, program, CASES + checkpoint_cases(program, directory))


def run(mpiexec, program, cases):
    failed = 0
    for trainer, inference, message in cases:
        common = [program, "update", "--backend", "host", "--limits", "off"]
        if "--model" not in trainer:
            common += ["--model", "preset:tiny-dense"]
        command = [mpiexec, "--oversubscribe",
                   "-n", "1", *common, "--role", "trainer", *trainer, ":",
                   "-n", "1", *common, "--role", "inference", *inference]
        done = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
        if done.returncode == 2 and message in done.stderr and not done.stdout:
            print(f"ok: {message}", flush=True)
            continue
        failed += 1
        print(f"FAILED: {trainer} against {inference}: exit code {done.returncode}, not 2 with "
              f"'{message}'\n{done.stdout}\n{done.stderr}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
