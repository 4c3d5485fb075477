#!/usr/bin/env python3
"""Writes a small checkpoint of random bits with the public safetensors package.

usage: write_checkpoint.py ARCHITECTURE SHARDS DIR

ARCHITECTURE is llama, qwen2, qwen3 or qwen3_moe; with one shard there is no index. The sizes are odd
where the architecture allows it.
"""
import json
import pathlib
import sys

import numpy
import safetensors

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB, LAYERS = 20, 6, 3, 7, 33, 101, 3
EXPERTS, MOE_INTERMEDIATE = 5, 9
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "qwen3_moe": "Qwen3MoeForCausalLM"}


def config(kind):
    result = {
        "architectures": [CLASSES[kind]], "model_type": kind, "hidden_act": "silu",
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "intermediate_size": INTERMEDIATE, "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS, "tie_word_embeddings": kind == "qwen2", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": None,
        "torch_dtype": "float32" if kind == "llama" else "bfloat16"}
    if kind == "qwen3_moe":
        result |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
                   "moe_intermediate_size": MOE_INTERMEDIATE, "mlp_only_layers": [1]}
    return result


def mlp(prefix, size):
    return {prefix + "gate_proj.weight": (size, HIDDEN), prefix + "up_proj.weight": (size, HIDDEN),
            prefix + "down_proj.weight": (HIDDEN, size)}


def shapes(kind):
    """Tensor name to shape, in the order of transformers' modules."""
    result = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            result[f"{prefix}self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
            if kind == "qwen2":
                result[f"{prefix}self_attn.{name}_proj.bias"] = (heads * HEAD_DIM,)
        result[prefix + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        if kind in ("qwen3", "qwen3_moe"):
            result[prefix + "self_attn.q_norm.weight"] = (HEAD_DIM,)
            result[prefix + "self_attn.k_norm.weight"] = (HEAD_DIM,)
        if kind == "llama":
            result[prefix + "self_attn.rotary_emb.inv_freq"] = (HEAD_DIM,)
        if kind == "qwen3_moe" and layer != 1:
            result[prefix + "mlp.gate.weight"] = (EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                result |= mlp(f"{prefix}mlp.experts.{expert}.", MOE_INTERMEDIATE)
        else:
            result |= mlp(prefix + "mlp.", INTERMEDIATE)
        result[prefix + "input_layernorm.weight"] = (HIDDEN,)
        result[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
    result["model.norm.weight"] = (HIDDEN,)
    result["lm_head.weight"] = (VOCAB, HIDDEN)  # tied qwen2 files may carry it, too
    return result


def specification(dtype, bits, shape):
    """What serialize_file takes for a tensor; releases since 0.8 take pointers."""
    if hasattr(safetensors, "TensorSpec"):
        return safetensors.TensorSpec(dtype=dtype, shape=list(shape), data_ptr=bits.ctypes.data,
                                      data_len=bits.nbytes)
    return {"dtype": dtype, "shape": list(shape), "data": bits.tobytes()}


def write_shard(path, tensors, dtype, random):
    unsigned = numpy.uint16 if dtype == "bfloat16" else numpy.uint32
    data = {name: random.integers(0, numpy.iinfo(unsigned).max, shape, unsigned, endpoint=True)
            for name, shape in tensors.items()}
    specifications = {name: specification(dtype, bits, bits.shape) for name, bits in data.items()}
    safetensors.serialize_file(specifications, str(path), {"format": "pt"})


def write(kind, shards, directory):
    directory.mkdir(parents=True)
    random = numpy.random.default_rng(7)
    settings = config(kind)
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = list(shapes(kind).items())
    weight_map = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(tensors[shard::shards])
        write_shard(directory / file, part, settings["torch_dtype"], random)
        weight_map |= {name: file for name in part}
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    write(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
