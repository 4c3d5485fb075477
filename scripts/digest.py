#!/usr/bin/env python3
"""Digests of a Hugging Face checkpoint, computed independently of awex-colocate (docs/digest.md).

usage: digest.py DIR

Prints "0x<16 hex digits>  <tensor name>" for every tensor, in the order of the names, and the model's
digest in the last line. Weights in another dtype than config.json's are cast, fp8 weights multiplied by
their blocks' scales, stacked experts taken apart. Needs the public packages numpy and safetensors.
"""
import json
import pathlib
import re
import sys

import numpy
import safetensors

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
LANE_KEYS = numpy.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93,
     0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3],
    dtype=numpy.uint64)
UNSIGNED = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F8_E4M3": "<u1", "F8_E5M2": "<u1"}
ELEMENTS_AT_ONCE = 1 << 22


def mix(x):
    """SplitMix64's finaliser, for a numpy array of uint64."""
    x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return x ^ (x >> numpy.uint64(31))


def mix_one(x):
    return int(mix(numpy.array([x], dtype=numpy.uint64))[0])


def tensor_key(name):
    hash_value = 0xCBF29CE484222325  # FNV-1a, 64 bits
    for byte in name.encode():
        hash_value = ((hash_value ^ byte) * 0x100000001B3) & MASK
    return mix_one(hash_value)


def tensor_digest(name, bits):
    """The digest of a tensor from its elements' bits, a flat array of unsigned integers."""
    key = numpy.uint64(tensor_key(name))
    digest = 0
    for first in range(0, len(bits), ELEMENTS_AT_ONCE):
        part = bits[first:first + ELEMENTS_AT_ONCE].astype(numpy.uint64)
        index = numpy.arange(first, first + len(part), dtype=numpy.uint64)
        groups = mix(key + index // numpy.uint64(8) * numpy.uint64(GOLDEN)) | numpy.uint64(1)
        terms = groups * LANE_KEYS[index % numpy.uint64(8)] * (part + numpy.uint64(1))
        digest += int(terms.sum(dtype=numpy.uint64))
    return digest & MASK


def files(directory):
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return [directory / shard for shard in sorted(shards)]


def belongs(name, config):
    """Whether a tensor is part of the model, and not a copy, a buffer or a layer for multi-token
    prediction that some files carry."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if "rotary_emb." in name or name.startswith(("mtp.", "model.mtp_layers.")):
        return False
    if layer and int(layer[1]) >= config["num_hidden_layers"]:
        return False
    return name != "lm_head.weight" or not config.get("tie_word_embeddings", False)


def e4m3_values():
    """The 256 numbers of OCP's e4m3 (fn): bias 7, 0x7f and 0xff are NaN."""
    values = []
    for bits in range(256):
        exponent, fraction = bits >> 3 & 15, bits & 7
        size = fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0**(exponent - 7)
        values.append((-1 if bits & 128 else 1) * (float("nan") if bits & 127 == 127 else size))
    return numpy.array(values, dtype=numpy.float32)


def to_floats(dtype, bits):
    """Elements' bits as fp32."""
    if dtype == "F8_E4M3":
        return e4m3_values()[bits]
    if dtype == "BF16":
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    return bits.view(numpy.float16).astype(numpy.float32) if dtype == "F16" else bits.view(numpy.float32)


def from_floats(dtype, values):
    """fp32 as elements' bits, rounded to nearest, ties to even. NaNs are not used."""
    if dtype == "BF16":
        bits = values.view(numpy.uint32).astype(numpy.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)
    return values.astype(numpy.float16).view(numpy.uint16) if dtype == "F16" else values.view(numpy.uint32)


class Stored:
    """All tensors of the files, as they are there."""

    def __init__(self, directory, config):
        self.tensors = {}
        for file in files(directory):
            for name, tensor in safetensors.deserialize(file.read_bytes()):
                if belongs(name, config):
                    bits = numpy.frombuffer(tensor["data"], dtype=UNSIGNED[tensor["dtype"]])
                    self.tensors[name] = tensor["dtype"], bits.reshape(tensor["shape"])
        named = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        self.dtype = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[named]
        self.block = config.get("quantization_config", {}).get("weight_block_size", [128, 128])

    def bits(self, name):
        """A tensor in the dtype that the model has it in."""
        dtype, bits = self.tensors[name]
        wanted = "F32" if name.endswith("e_score_correction_bias") else self.dtype
        if dtype == wanted:
            return bits
        values = to_floats(dtype, bits)
        if dtype == "F8_E4M3":
            scales = to_floats(*self.tensors[name + "_scale_inv"])
            scales = scales.repeat(self.block[0], -2)[..., :bits.shape[-2], :]
            values = values * scales.repeat(self.block[1], -1)[..., :bits.shape[-1]]
        return from_floats(wanted, values.astype(numpy.float32))


def experts_of(name, stack):
    """The matrices that transformers 5 stacks: (name, bits) of every expert."""
    prefix = name.rpartition(".")[0]
    for expert, matrix in enumerate(stack):
        if name.endswith("down_proj"):
            yield f"{prefix}.{expert}.down_proj.weight", matrix
        else:
            for part, half in zip(("gate", "up"), numpy.split(matrix, 2)):
                yield f"{prefix}.{expert}.{part}_proj.weight", half


MIXTRAL = {".mlp.": ".block_sparse_moe.", ".gate_proj.": ".w1.", ".up_proj.": ".w3.", ".down_proj.": ".w2."}


def canonical(name, config):
    """The name that a tensor's digest is of: Mixtral's is that of its first release."""
    if config.get("model_type") == "mixtral":
        for part, first in MIXTRAL.items():
            name = name.replace(part, first)
    return name


def digests(directory):
    """Tensor name to digest, for every tensor of the checkpoint in `directory`."""
    config = json.loads((directory / "config.json").read_text())
    stored = Stored(directory, config)
    result = {}
    for name in stored.tensors:
        if name.endswith("_scale_inv"):
            continue
        bits = stored.bits(name)
        parts = experts_of(name, bits) if name.endswith(("gate_up_proj", "down_proj")) else [(name, bits)]
        for part, flat in parts:
            part = canonical(part, config)
            result[part] = tensor_digest(part, flat.reshape(-1))
    return result


def model_digest(tensors):
    return sum(mix_one(digest ^ tensor_key(name)) for name, digest in tensors.items()) & MASK


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tensors = digests(pathlib.Path(sys.argv[1]))
    for name in sorted(tensors):
        print(f"0x{tensors[name]:016x}  {name}")
    print(f"0x{model_digest(tensors):016x}  model")


if __name__ == "__main__":
    main()
