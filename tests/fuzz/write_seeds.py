#!/usr/bin/env python3
"""Writes the inputs that fuzzing begins with.

usage: write_seeds.py DIR

Fills DIR/fuzz_config and DIR/fuzz_safetensors with small valid files.
"""
import json
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


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target in ("fuzz_config", "fuzz_safetensors"):
        (pathlib.Path(sys.argv[1]) / target).mkdir(parents=True, exist_ok=True)
    for name, config in CONFIGS.items():
        (pathlib.Path(sys.argv[1]) / "fuzz_config" / name).write_text(json.dumps(config))
    for name, (header, data_bytes) in HEADERS.items():
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + bytes(data_bytes)
        (pathlib.Path(sys.argv[1]) / "fuzz_safetensors" / name).write_bytes(content)


if __name__ == "__main__":
    main()
