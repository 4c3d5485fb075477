#!/usr/bin/env python3
"""Checkpoints that the public safetensors package wrote, sharded and with an index, are updated with
the digests that the independent scripts/digest.py computes from their files."""

import argparse
import json
import os
import sys
import tempfile

ARCHITECTURES = ["llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3", "kimi_k2", "glm4_moe"]
SHARDS = "3"

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import output_of  # noqa: E402  pylint: disable=wrong-import-position


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, architecture)
            output_of([sys.executable,
                       os.path.join(arguments.source, "tests/model/write_checkpoint.py"),
                       architecture, SHARDS, model])
            assert os.path.exists(os.path.join(model, "model.safetensors.index.json"))
            lines = output_of([sys.executable, os.path.join(arguments.source, "scripts/digest.py"),
                               model])
            expected = lines.strip().splitlines()[-1].split()[0]
            report = json.loads(output_of([
                arguments.mpiexec, "--oversubscribe", "-n", "6", arguments.program, "update",
                "--model", model, "--trainer", "megatron:tp=3", "--inference", "sglang:tp=1",
                "--backend", "host", "--verify", "full", "--limits", "off", "--json", "-"]))
            version = report["versions"][0]
            assert version["committed"] and version["digest"]["mismatched"] == 0, report
            assert version["digest"]["model"] == expected, (version["digest"], expected)
            print(f"ok: {architecture}: {expected}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
