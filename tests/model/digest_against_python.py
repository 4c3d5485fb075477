#!/usr/bin/env python3
"""Compares our reader, writer and digests with the public safetensors package and numpy.

usage: digest_against_python.py MODEL_TOOL REPOSITORY
"""
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, sys.argv[2] + "/tests/model")
import write_checkpoint  # noqa: E402

TOOL = sys.argv[1]
DIGEST = [sys.executable, sys.argv[2] + "/scripts/digest.py"]


def lines(command):
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines()


def compare(what, directory):
    """Both programs must print the same digests, at least one of a tensor and that of the model."""
    ours, theirs = lines([TOOL, "digest", str(directory)]), lines(DIGEST + [str(directory)])
    differing = sorted(set(ours) ^ set(theirs))
    same = not differing and len(ours) > 1
    print(f"{what}: {len(theirs)} digests, {'equal' if same else 'DIFFERENT'}", *differing, sep="\n  ")
    return same


def main():
    results = []
    with tempfile.TemporaryDirectory() as root:
        for kind in write_checkpoint.CLASSES:
            for shards in (1, 3):
                directory = pathlib.Path(root) / f"{kind}-{shards}"
                write_checkpoint.write(kind, shards, directory)
                results.append(compare(f"{kind} in {shards} shards, read by us", directory))
        for kind, form in (("deepseek_v3", "fp8"), ("kimi_k2", "both"), ("qwen3_moe", "stacked"),
                           ("qwen3", "fp8"), ("qwen2", "fp32"), ("glm4_moe", "mixed"),
                           ("qwen3_moe", "both"), ("mixtral", "stacked")):
            directory = pathlib.Path(root) / f"{kind}-{form}"
            write_checkpoint.write(kind, 2, directory, form)
            results.append(compare(f"{kind} stored as {form}, read by us", directory))
        for preset, shard_bytes in (("tiny-moe", 10**6), ("tiny-dense-bias", 10**9),
                                    ("tiny-mla", 10**6), ("tiny-glm", 10**9)):
            directory = pathlib.Path(root) / preset
            lines([TOOL, "write", "preset:" + preset, str(directory), str(shard_bytes)])
            results.append(compare(f"{preset}, written by us", directory))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
