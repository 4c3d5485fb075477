#!/usr/bin/env python3
"""Writes a small checkpoint of random bits with the public safetensors package.

usage: write_checkpoint.py ARCHITECTURE SHARDS DIR [FORM]

ARCHITECTURE is a model type of CLASSES; with one shard there is no index. The sizes are odd where the
architecture allows it. deepseek_v3, glm4_moe, glm4_moe_lite and mimo have a layer for multi-token prediction behind the
others, as the published files have. FORM says how weights are stored:
  fp8      projections in e4m3 with scales for blocks of BLOCK, named in config.json
  stacked  experts as transformers 5 stacks them
  both     stacked experts, and fp8
  fp32     all of them in fp32, config.json says bfloat16
  mixed    norms and routers in fp32, a router's bias in bf16
"""
import json
import pathlib
import sys

import numpy
import safetensors

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB, LAYERS = 20, 6, 3, 7, 33, 101, 3
EXPERTS, MOE_INTERMEDIATE, SHARED_EXPERTS = 5, 9, 2
Q_RANK, KV_RANK, NOPE, ROPE, V_HEAD = 13, 11, 5, 4, 3
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "qwen3_moe": "Qwen3MoeForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
           "kimi_k2": "DeepseekV3ForCausalLM", "glm4_moe": "Glm4MoeForCausalLM",
           "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
           "qwen2_moe": "Qwen2MoeForCausalLM", "seed_oss": "SeedOssForCausalLM",
           "mimo": "MiMoForCausalLM", "glm4_moe_lite": "Glm4MoeLiteForCausalLM"}
LATENT = ("deepseek_v3", "kimi_k2", "glm4_moe_lite")  # kimi_k2 without q_lora_rank
BESIDE_SHARED = (*LATENT, "glm4_moe")
SPARSE = ("qwen3_moe", "qwen2_moe")
QK_NORM = ("qwen3", "qwen3_moe", "glm4_moe")
QKV_BIAS = ("qwen2", "glm4_moe", "qwen2_moe", "seed_oss", "mimo")
SHARED_INTERMEDIATE = 17  # of qwen2_moe


def config(kind):
    result = {
        "architectures": [CLASSES[kind]], "model_type": kind, "hidden_act": "silu",
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "intermediate_size": INTERMEDIATE, "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS, "tie_word_embeddings": kind == "qwen2", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": None,
        "torch_dtype": "float32" if kind == "llama" else "bfloat16"}
    if kind in SPARSE:
        result |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
                   "moe_intermediate_size": MOE_INTERMEDIATE, "mlp_only_layers": [1]}
    if kind == "qwen2_moe":
        result["shared_expert_intermediate_size"] = SHARED_INTERMEDIATE
    if kind == "mixtral":
        result |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 2,
                   "intermediate_size": MOE_INTERMEDIATE}
    if kind == "seed_oss":
        result |= {"attention_bias": True, "attention_out_bias": True}
    if kind == "mimo":
        result["num_nextn_predict_layers"] = 1
    if kind in LATENT:
        del result["head_dim"]
        result |= {"q_lora_rank": None if kind == "kimi_k2" else Q_RANK, "kv_lora_rank": KV_RANK,
                   "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": V_HEAD,
                   "num_key_value_heads": HEADS, "moe_layer_freq": 1, "topk_method": "noaux_tc"}
    if kind in BESIDE_SHARED:
        result |= {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_group": 1,
                   "moe_intermediate_size": MOE_INTERMEDIATE, "n_shared_experts": SHARED_EXPERTS,
                   "first_k_dense_replace": 1, "num_nextn_predict_layers": mtp_layers(kind)}
    if kind == "glm4_moe":
        result |= {"attention_bias": True, "use_qk_norm": True}
    return result


def mtp_layers(kind):
    return 1 if kind in ("deepseek_v3", "glm4_moe", "glm4_moe_lite") else 0


def mlp(prefix, size):
    return {prefix + "gate_proj.weight": (size, HIDDEN), prefix + "up_proj.weight": (size, HIDDEN),
            prefix + "down_proj.weight": (HIDDEN, size)}


def grouped_attention(kind, prefix):
    result = {}
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        result[f"{prefix}{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
        if kind in QKV_BIAS:
            result[f"{prefix}{name}_proj.bias"] = (heads * HEAD_DIM,)
    result[prefix + "o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
    if kind == "seed_oss":
        result[prefix + "o_proj.bias"] = (HIDDEN,)
    if kind in QK_NORM:
        result |= {prefix + "q_norm.weight": (HEAD_DIM,), prefix + "k_norm.weight": (HEAD_DIM,)}
    if kind == "llama":
        result[prefix + "rotary_emb.inv_freq"] = (HEAD_DIM,)
    return result


def latent_attention(kind, prefix):
    q_rows = HEADS * (NOPE + ROPE)
    if kind == "kimi_k2":
        result = {prefix + "q_proj.weight": (q_rows, HIDDEN)}
    else:
        result = {prefix + "q_a_proj.weight": (Q_RANK, HIDDEN),
                  prefix + "q_a_layernorm.weight": (Q_RANK,),
                  prefix + "q_b_proj.weight": (q_rows, Q_RANK)}
    return result | {prefix + "kv_a_proj_with_mqa.weight": (KV_RANK + ROPE, HIDDEN),
                     prefix + "kv_a_layernorm.weight": (KV_RANK,),
                     prefix + "kv_b_proj.weight": (HEADS * (NOPE + V_HEAD), KV_RANK),
                     prefix + "o_proj.weight": (HIDDEN, HEADS * V_HEAD)}


def mixtral_experts(prefix):
    result = {prefix + "gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        result |= {f"{prefix}experts.{expert}.w1.weight": (MOE_INTERMEDIATE, HIDDEN),
                   f"{prefix}experts.{expert}.w2.weight": (HIDDEN, MOE_INTERMEDIATE),
                   f"{prefix}experts.{expert}.w3.weight": (MOE_INTERMEDIATE, HIDDEN)}
    return result


def experts(kind, prefix):
    result = {prefix + "gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        result |= mlp(f"{prefix}experts.{expert}.", MOE_INTERMEDIATE)
    if kind in BESIDE_SHARED:
        result[prefix + "gate.e_score_correction_bias"] = (EXPERTS,)
        result |= mlp(prefix + "shared_experts.", SHARED_EXPERTS * MOE_INTERMEDIATE)
    if kind == "qwen2_moe":
        result |= mlp(prefix + "shared_expert.", SHARED_INTERMEDIATE)
        result[prefix + "shared_expert_gate.weight"] = (1, HIDDEN)
    return result


def has_experts(kind, layer):
    return layer != 1 if kind in SPARSE else kind in BESIDE_SHARED and layer >= 1


def decoder_layer(kind, layer):
    prefix = f"model.layers.{layer}."
    attention = latent_attention if kind in LATENT else grouped_attention
    result = attention(kind, prefix + "self_attn.")
    if kind == "mixtral":
        result |= mixtral_experts(prefix + "block_sparse_moe.")
    elif has_experts(kind, layer):
        result |= experts(kind, prefix + "mlp.")
    else:
        result |= mlp(prefix + "mlp.", INTERMEDIATE)
    return result | {prefix + "input_layernorm.weight": (HIDDEN,),
                     prefix + "post_attention_layernorm.weight": (HIDDEN,)}


def mtp_layer(kind, layer):
    prefix = f"model.layers.{layer}."
    return decoder_layer(kind, layer) | {
        prefix + "embed_tokens.weight": (VOCAB, HIDDEN), prefix + "enorm.weight": (HIDDEN,),
        prefix + "hnorm.weight": (HIDDEN,), prefix + "eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        prefix + "shared_head.norm.weight": (HIDDEN,),
        prefix + "shared_head.head.weight": (VOCAB, HIDDEN)}


def shapes(kind):
    """Tensor name to shape, in the order of transformers' modules."""
    result = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        result |= decoder_layer(kind, layer)
    for layer in range(LAYERS, LAYERS + mtp_layers(kind)):
        result |= mtp_layer(kind, layer)
    if kind == "mimo":  # layers for multi-token prediction of its own kind
        result |= {"model.mtp_layers.0.input_proj.weight": (HIDDEN, 2 * HIDDEN),
                   "model.mtp_layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN)}
    result["model.norm.weight"] = (HIDDEN,)
    result["lm_head.weight"] = (VOCAB, HIDDEN)
    return result


BLOCK = (4, 6)  # no multiples of the sizes, so blocks are cut at both ends


def stacked(tensors):
    """The shapes with the experts of each layer as two tensors, under transformers 5's own names."""
    result = {}
    for name, shape in tensors.items():
        name = name.replace(".block_sparse_moe.", ".mlp.").replace(".w2.", ".down_proj.")
        prefix, _, rest = name.partition(".mlp.experts.")
        if not rest:
            result[name] = shape
        elif rest.endswith("down_proj.weight"):
            result[prefix + ".mlp.experts.down_proj"] = (EXPERTS, *shape)
        else:
            result[prefix + ".mlp.experts.gate_up_proj"] = (EXPERTS, 2 * shape[0], shape[1])
    return result


def specification(dtype, bits, shape):
    """What serialize_file takes for a tensor; releases since 0.8 take pointers."""
    if hasattr(safetensors, "TensorSpec"):
        return safetensors.TensorSpec(dtype=dtype, shape=list(shape), data_ptr=bits.ctypes.data,
                                      data_len=bits.nbytes)
    return {"dtype": dtype, "shape": list(shape), "data": bits.tobytes()}


def dtype_of(name, model_dtype, form=""):
    if name.endswith("e_score_correction_bias"):
        return "bfloat16" if form == "mixed" else "float32"
    if form == "fp32" or form == "mixed" and (name.endswith(("norm.weight", "mlp.gate.weight"))):
        return "float32"
    return "float8_e4m3fn" if form in ("fp8", "both") and "_proj" in name and "bias" not in name else model_dtype


UNSIGNED = {"bfloat16": numpy.uint16, "float32": numpy.uint32, "float8_e4m3fn": numpy.uint8}


def random_bits(dtype, shape, random):
    unsigned = UNSIGNED[dtype]
    return random.integers(0, numpy.iinfo(unsigned).max, shape, unsigned, endpoint=True)


def finite_bits(dtype, shape, random):
    """Bits of numbers that casts and scales keep finite: a NaN's bits may be any."""
    if dtype == "float8_e4m3fn":
        bits = random_bits(dtype, shape, random)
        return numpy.where(bits & 127 == 127, 0x35, bits).astype(numpy.uint8)
    bits = random.standard_normal(shape, numpy.float32).view(numpy.uint32)
    return bits if dtype == "float32" else (bits >> 16).astype(numpy.uint16)


def scale_shape(shape):
    return (*shape[:-2], -(-shape[-2] // BLOCK[0]), -(-shape[-1] // BLOCK[1]))


def write_shard(path, tensors, model_dtype, random, form=""):
    data = {}
    for name, shape in tensors.items():
        dtype = dtype_of(name, model_dtype, form)
        data[name] = dtype, (finite_bits if form else random_bits)(dtype, shape, random)
        if dtype == "float8_e4m3fn":
            # As bf16 scales in one kind of file and fp32 ones in the other, as published ones are.
            scales = "bfloat16" if form == "both" else "float32"
            data[name + "_scale_inv"] = scales, finite_bits(scales, scale_shape(shape), random)
    specifications = {name: specification(dtype, bits, bits.shape)
                      for name, (dtype, bits) in data.items()}
    safetensors.serialize_file(specifications, str(path), {"format": "pt"})
    return list(data)


def write(kind, shards, directory, form=""):
    directory.mkdir(parents=True)
    random = numpy.random.default_rng(7)
    settings = config(kind)
    if form in ("fp8", "both"):
        settings["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3",
                                           "weight_block_size": list(BLOCK)}
    (directory / "config.json").write_text(json.dumps(settings))
    tensors = list((stacked(shapes(kind)) if form in ("stacked", "both") else shapes(kind)).items())
    if settings["tie_word_embeddings"]:  # a stored head that is no copy of the embeddings is refused
        tensors = [(name, shape) for name, shape in tensors if name != "lm_head.weight"]
    weight_map = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = write_shard(directory / file, dict(tensors[shard::shards]), settings["torch_dtype"], random,
                            form)
        weight_map |= {name: file for name in names}
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    write(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), *sys.argv[4:])
