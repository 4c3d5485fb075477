#!/usr/bin/env python3
"""Writes what transformers itself saves of small models, one of each family: config.json as it writes
it, and every tensor's name, shape and dtype as the files hold them. families_test compares.

usage: against_transformers.py --write FOLDER [--only NAME]
"""
import argparse
import json
import pathlib
import struct
import tempfile

import torch
import transformers

SMALL = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 40, "vocab_size": 70, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10,
          "num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 14}
DEEPSEEK = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}

# model_type, then what differs from the defaults; then what config.json says otherwise where transformers
# has no class of the family but the one from which its own is derived.
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 10}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "head_dim": 10, "mlp_only_layers": [1]}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **DEEPSEEK, "first_k_dense_replace": 1}),
    "deepseek_v3-one-q": ("deepseek_v3", {**LATENT, **DEEPSEEK, "first_k_dense_replace": 2, "q_lora_rank": None}),
    "glm4_moe": ("glm4_moe", {**DEEPSEEK, "first_k_dense_replace": 1, "head_dim": 10, "attention_bias": True,
                              "use_qk_norm": True}),
    "mistral": ("mistral", {"head_dim": 10}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 18,
                                "mlp_only_layers": [1]}),
    "seed_oss": ("seed_oss", {"head_dim": 10}),
    "seed_oss-out-bias": ("seed_oss", {"head_dim": 10, "attention_bias": False, "attention_out_bias": True}),
    "mimo": ("qwen2", {"head_dim": 10}, {"architectures": ["MiMoForCausalLM"], "model_type": "mimo",
                                         "num_nextn_predict_layers": 1}),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, **DEEPSEEK}),
}


def header(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8:8 + size])
    tensors.pop("__metadata__", None)
    return tensors


def save(name, folder, model_type, options, renamed=None):
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options})
    with tempfile.TemporaryDirectory() as place:
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(place)
        # Loaded again, for only then what transformers keeps in fp32 is.
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
        model.save_pretrained(place)
        saved = json.loads((pathlib.Path(place) / "config.json").read_text()) | (renamed or {})
        tensors = header(pathlib.Path(place) / "model.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(saved, indent=1) + "\n")
    lines = [f"# Written by scripts/test-transformers.sh --write: what transformers {transformers.__version__} saves."]
    lines += [f"{tensor} {entry['dtype']} {' '.join(map(str, entry['shape']))}"
              for tensor, entry in sorted(tensors.items())]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", required=True, type=pathlib.Path)
    parser.add_argument("--only", choices=MODELS)
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    for name, model in MODELS.items():
        if arguments.only in (None, name):
            save(name, arguments.write, *model)
            print(f"{name}: written", flush=True)


if __name__ == "__main__":
    main()
