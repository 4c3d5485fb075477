#!/usr/bin/env python3
"""Checkpoints that the public safetensors package wrote, sharded and with an index, are updated with
the digests that the independent scripts/digest.py computes from their files. Loading tells of as many
bytes in all as it then has read, also where it casts them."""

import argparse
import json
import os
import sys
import tempfile

# With the form of the weights in the files; in some a rank reads parts of blocks that share a scale.
CHECKPOINTS = [("llama",), ("qwen2", "fp32"), ("qwen3", "fp8"), ("qwen3_moe", "both"),
               ("deepseek_v3", "fp8"), ("kimi_k2", "stacked"), ("glm4_moe", "mixed")]
SHARDS = "3"

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import output_of  # noqa: E402  pylint: disable=wrong-import-position


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    for architecture, *form in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, architecture)
            output_of([sys.executable,
                       os.path.join(arguments.source, "tests/model/write_checkpoint.py"),
                       architecture, SHARDS, model, *form])
            assert os.path.exists(os.path.join(model, "model.safetensors.index.json"))
            lines = output_of([sys.executable, os.path.join(arguments.source, "scripts/digest.py"),
                               model])
            expected = lines.strip().splitlines()[-1].split()[0]
            # As the checkpoint has it; GLM's engines hold the router in fp32. This Qwen2 has a head_dim
            # of its own, which vLLM's class ignores.
            engine = "sglang" if architecture == "qwen2" else "vllm"
            report = json.loads(output_of([
                arguments.mpiexec, "--oversubscribe", "-n", "6", arguments.program, "update",
                "--model", model, "--trainer", "megatron:tp=3",
                "--inference", f"{engine}:tp=1,router_dtype=bf16",
                "--backend", "host", "--verify", "full", "--limits", "off", "--json", "-"],
                r"loaded the weights: (.+) of \1 in "))
            version = report["versions"][0]
            assert version["committed"] and version["digest"]["mismatched"] == 0, report
            assert version["digest"]["model"] == expected, (version["digest"], expected)
            print(f"ok: {architecture}: {expected}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
