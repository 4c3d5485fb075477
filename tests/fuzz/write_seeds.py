#!/usr/bin/env python3
"""Writes the inputs that fuzzing begins with.

usage: write_seeds.py DIR

Fills DIR/fuzz_config, DIR/fuzz_safetensors, DIR/fuzz_checkpoint and DIR/fuzz_protocol with small
valid inputs.
"""
import json
import math
import pathlib
import struct
import sys

BASE = {"torch_dtype": "bfloat16", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 32}
EXPERTS = {"head_dim": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4,
           "decoder_sparse_step": 1, "mlp_only_layers": [1]}
BESIDE_SHARED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4,
                 "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
LATENT = {"q_lora_rank": 6, "kv_lora_rank": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2,
          "v_head_dim": 3, "moe_layer_freq": 1, "topk_method": "noaux_tc"}
CONFIGS = {
    "llama": BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False},
    "qwen2": BASE | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": BASE | {"model_type": "qwen3", "head_dim": 128},
    "qwen3_moe": BASE | EXPERTS | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
    "deepseek_v3": BASE | BESIDE_SHARED | LATENT | {"model_type": "deepseek_v3"},
    "kimi_k2": BASE | BESIDE_SHARED | LATENT | {"architectures": ["DeepseekV3ForCausalLM"],
                                                "model_type": "kimi_k2", "q_lora_rank": None},
    "glm4_moe": BASE | BESIDE_SHARED | {"model_type": "glm4_moe", "head_dim": 2,
                                        "attention_bias": True, "use_qk_norm": True},
}


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "empty": ({}, 0),
    "one": ({"t": tensor("BF16", [2, 3], 0, 12)}, 12),
    "several": ({"__metadata__": {"format": "pt"}, "a": tensor("F32", [2], 4, 12),
                 "b": tensor("F8_E4M3", [4, 1], 0, 4), "none": tensor("F16", [0, 9], 4, 4),
                 "scalar": tensor("F8_E5M2", [], 12, 13)}, 13),
}


BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
BREAK = "\n---\n"


def shapes(stacked):
    """A layer with experts (each a matrix, or stacked) and all around it; head_dim is 2."""
    layer = "model.layers.0."
    result = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), "lm_head.weight": (32, 8)}
    for name, shape in (("q_proj", (8, 8)), ("k_proj", (4, 8)), ("v_proj", (4, 8)), ("o_proj", (8, 8)),
                        ("q_norm", (2,)), ("k_norm", (2,))):
        result[f"{layer}self_attn.{name}.weight"] = shape
    result |= {layer + "input_layernorm.weight": (8,), layer + "post_attention_layernorm.weight": (8,),
               layer + "mlp.gate.weight": (4, 8)}
    if stacked:
        return result | {layer + "mlp.experts.gate_up_proj": (4, 8, 8),
                         layer + "mlp.experts.down_proj": (4, 8, 4)}
    for expert in range(4):
        for name, shape in (("gate_proj", (4, 8)), ("up_proj", (4, 8)), ("down_proj", (8, 4))):
            result[f"{layer}mlp.experts.{expert}.{name}.weight"] = shape
    return result


def with_dtypes(tensors, fp8):
    """(dtype, shape) by name; of fp8, scales for blocks of 4 x 4 too."""
    result = {}
    for name, shape in tensors.items():
        is_fp8 = fp8 and "_proj" in name
        result[name] = "F8_E4M3" if is_fp8 else "BF16", shape
        if is_fp8:
            result[name + "_scale_inv"] = "F32", (*shape[:-2], math.ceil(shape[-2] / 4),
                                                  math.ceil(shape[-1] / 4))
    return result


def header_of(tensors):
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = tensor(dtype, shape, begin, end)
    return json.dumps(header)


def checkpoint(files, stacked=False, fp8=False, **settings):
    """config.json, the index of several files, and their headers."""
    config = BASE | EXPERTS | {"model_type": "qwen3_moe", "num_hidden_layers": 1, "mlp_only_layers": []}
    if fp8:
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    tensors = list(with_dtypes(shapes(stacked), fp8).items())
    parts = [dict(tensors[i::files]) for i in range(files)]
    index = {name: "abc"[i] + ".safetensors" for i, part in enumerate(parts) for name in part}
    return BREAK.join([json.dumps(config | settings),
                       json.dumps({"weight_map": index}) if files > 1 else "",
                       *map(header_of, parts)])


CHECKPOINTS = {
    "plain": checkpoint(1), "sharded": checkpoint(3), "stacked": checkpoint(1, stacked=True),
    "fp8": checkpoint(2, fp8=True), "stacked_fp8": checkpoint(1, stacked=True, fp8=True),
    "cast": checkpoint(1, torch_dtype="float32"), "tied": checkpoint(1, tie_word_embeddings=True),
}


def request(errand, command=None, **options):
    """As a client sends it; the first byte says that one speaks."""
    if command:
        command = {"command": command, "versions": 1, "verify": "digest", "train": True, "scope": None} | options
    rendering = {"table": True, "unicode": False, "color": False, "json": True, "trace": False}
    return "0" + json.dumps({"protocol": 1, "errand": errand, "command": command,
                             "cancel_on_disconnect": False, "rendering": rendering})


def event(kind, **fields):
    return "1" + json.dumps({"event": kind} | fields)


ERROR = {"code": 5, "rank": 1, "host": "a", "gpu": "0", "role": "trainer", "phase": "transfer",
         "tag": "weights", "tensor": None, "message": "rank 1 is gone", "hint": None}
MESSAGES = {
    "update": request("update", "hand_over", verify="full"),
    "updates": request("update", "update", versions=3, verify="off"),
    "offload": request("offload", "offload", scope={"role": "trainer", "tags": ["optimizer"]}),
    "transfer": request("transfer", "transfer", train=False),
    "resume": request("resume", "take_back"),
    "resume_part": request("resume", "resume", scope={"role": None, "tags": ["kv_cache", "weights"]}),
    **{errand: request(errand) for errand in ("restore", "status", "stop")},
    "queued": event("queued", ahead=2),
    "started": event("started"),
    "phase": event("phase", phase="transfer", role="all", tag=None, seconds=0.25, bytes=8),
    "done": event("done", exit_code=0, error=None, table="a\n", json="{}", trace=None, status=None),
    "failed": event("done", exit_code=5, error=ERROR),
}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target in ("fuzz_config", "fuzz_safetensors", "fuzz_checkpoint", "fuzz_protocol"):
        (pathlib.Path(sys.argv[1]) / target).mkdir(parents=True, exist_ok=True)
    for name, config in CONFIGS.items():
        (pathlib.Path(sys.argv[1]) / "fuzz_config" / name).write_text(json.dumps(config))
    for name, (header, data_bytes) in HEADERS.items():
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + bytes(data_bytes)
        (pathlib.Path(sys.argv[1]) / "fuzz_safetensors" / name).write_bytes(content)
    for name, text in CHECKPOINTS.items():
        (pathlib.Path(sys.argv[1]) / "fuzz_checkpoint" / name).write_text(text)
    for name, text in MESSAGES.items():
        (pathlib.Path(sys.argv[1]) / "fuzz_protocol" / name).write_text(text)


if __name__ == "__main__":
    main()
