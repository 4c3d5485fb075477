#!/usr/bin/env python3
"""Inference that holds other dtypes than the trainer, fp8 with block scales among them, holds the bits
that a reference in numpy computes from the checkpoint's files: digests of data and scales are equal,
for trainers that hold blocks whole, in part, and in several copies."""

import argparse
import json
import os
import pathlib
import sys
import tempfile

import numpy
import safetensors

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import output_of  # noqa: E402  pylint: disable=wrong-import-position

# (model, layers, ranks, trainer, inference, dtype, router's dtype, block)
RUNS = [
    ("tiny-dense", 2, 2, "megatron:tp=1", "sglang:tp=1", "fp16", None, 0),
    ("tiny-glm", 2, 4, "megatron:tp=2", "vllm:tp=2", "fp32", None, 0),
    ("tiny-moe", 2, 4, "megatron:tp=2,ep=2,etp=1", "sglang:tp=2,ep=2", None, "fp32", 0),
    ("tiny-dense", 2, 2, "hf", "hf", "fp8", None, 128),
    ("tiny-moe", 2, 8, "megatron:tp=2,pp=2", "hf", "fp8", None, 128),
    ("tiny-mla", 3, 6, "megatron:tp=3", "sglang:tp=3,keeps_fp8=on", "fp8", "fp32", 4),
    ("tiny-mla", 2, 4, "megatron:tp=1,pp=2", "vllm:tp=1,deep_gemm=off", "fp8", None, 12),
    ("tiny-glm", 2, 6, "fsdp:shard=3", "hf", "fp8", None, 40),
    ("tiny-dense", 2, 10, "fsdp:shard=5", "hf", "fp8", None, 7),
    ("tiny-moe", 2, 8, "fsdp:shard=2", "sglang:tp=2,ep=2,keeps_fp8=on", "fp8", None, 16),
]

QUANTISED = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.", "self_attn.o_proj.",
             "self_attn.q_a_proj.", "self_attn.q_b_proj.", "self_attn.kv_a_proj_with_mqa.",
             "self_attn.kv_b_proj.", ".gate_proj.", ".up_proj.", ".down_proj.")


def e4m3_values():
    """What the 256 codes of fp8 e4m3 (fn) stand for."""
    values = []
    for code in range(256):
        exponent, fraction = code >> 3 & 15, code & 7
        size = fraction / 512 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        values.append(float("nan") if code & 127 == 127 else -size if code & 128 else size)
    return numpy.array(values)


def to_e4m3(numbers):
    """The nearest codes, of two equally near ones the even, looked for among all of one sign."""
    positive = e4m3_values()[:127]
    codes = numpy.empty(numbers.shape, dtype=numpy.uint8)
    for row, line in enumerate(numbers.astype(numpy.float64)):
        distance = numpy.abs(numpy.minimum(numpy.abs(line), 448)[:, None] - positive)
        nearest = distance.min(axis=1)[:, None]
        even_first = numpy.where(distance == nearest, numpy.arange(127) % 2, 2)
        codes[row] = even_first.argmin(axis=1) + 128 * numpy.signbit(line)
    return codes


def quantise(matrix, block):
    """Codes and scales of a matrix in float32, block by block."""
    rows, cols = matrix.shape
    scales = numpy.empty((-(-rows // block), -(-cols // block)), dtype=numpy.float32)
    codes = numpy.empty(matrix.shape, dtype=numpy.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = numpy.s_[i * block:(i + 1) * block, j * block:(j + 1) * block]
            largest = numpy.abs(matrix[part]).max()
            scales[i, j] = numpy.maximum(largest, numpy.float32(1e-4)) / numpy.float32(448)
            codes[part] = to_e4m3(matrix[part] / scales[i, j])
    return codes, scales


def tensors_of(digest, directory):
    """Name, dtype and shape of every tensor, with its elements in float32."""
    for file in digest.files(directory):
        for name, tensor in safetensors.deserialize(file.read_bytes()):
            bits = numpy.frombuffer(tensor["data"], dtype=digest.UNSIGNED[tensor["dtype"]])
            if tensor["dtype"] == "BF16":
                bits = bits.astype(numpy.uint32) << 16
            yield name, tensor["dtype"], bits.view(numpy.float32).reshape(tensor["shape"])


def converted(name, dtype, values, rules):
    """The (name, bits) that inference must hold of a tensor."""
    wanted, router, block = rules
    if wanted == "fp8" and any(part in name for part in QUANTISED) and name.endswith(".weight"):
        codes, scales = quantise(values, block)
        return [(name, codes), (name + "_scale_inv", scales.view(numpy.uint32))]
    target = {"BF16": "bf16", "F32": "fp32"}[dtype]
    if wanted not in (None, "fp8") and dtype == "BF16":
        target = wanted
    if router is not None and name.endswith("mlp.gate.weight"):
        target = router
    if target == "bf16":
        return [(name, values.view(numpy.uint32) >> 16)]  # it is bf16 already
    if target == "fp16":
        return [(name, values.astype(numpy.float16).view(numpy.uint16))]
    return [(name, values.view(numpy.uint32))]


def expected_digest(digest, directory, rules):
    digests = {}
    for name, dtype, values in tensors_of(digest, directory):
        for held, bits in converted(name, dtype, values, rules):
            digests[held] = digest.tensor_digest(held, bits.ravel())
    return f"0x{digest.model_digest(digests):016x}", len(digests)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--most-ranks", type=int, default=10)
    arguments = parser.parse_args()
    sys.path.insert(0, os.path.join(arguments.source, "scripts"))
    import digest  # pylint: disable=import-outside-toplevel
    for model, layers, ranks, trainer, inference, dtype, router, block in RUNS:
        if ranks > arguments.most_ranks:
            continue
        options = [("dtype", dtype), ("router_dtype", router), ("block", block or None)]
        given = ",".join(f"{key}={value}" for key, value in options if value is not None)
        inference += ("," if ":" in inference else ":") + given
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = os.path.join(folder, "checkpoint")
            output_of([arguments.program, "checkpoint", "--preset", model, "--layers", str(layers),
                       "--out", checkpoint])
            expected, tensors = expected_digest(digest, pathlib.Path(checkpoint),
                                                (dtype, router, block))
            report = json.loads(output_of([
                arguments.mpiexec, "--oversubscribe", "-n", str(ranks), arguments.program, "update",
                "--model", checkpoint, "--trainer", trainer, "--inference", inference, "--versions",
                "2", "--backend", "host", "--verify", "full", "--limits", "off", "--json", "-"]))
        first, second = report["versions"]
        assert first["committed"] and second["committed"], report
        assert first["digest"]["tensors"] == tensors, (first["digest"], tensors)
        assert first["digest"]["model"] == expected, (trainer, inference, first["digest"], expected)
        assert second["digest"]["model"] != expected, "training changed nothing"
        print(f"ok: {model} {trainer} -> {inference} on {ranks} ranks: {expected}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
