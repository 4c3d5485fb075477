"""The Qwen3 of these tests, as config.json has it: ENGINES_MODEL says small (heads of 32 are the least that vLLM takes on a
CPU), 0.6b or 1.7b (as published)."""

import os

SHAPES = {
    "small": (1024, 2, 128, 8, 4, 32, 256, False),
    "0.6b": (151936, 28, 1024, 16, 8, 128, 3072, True),
    "1.7b": (151936, 28, 2048, 16, 8, 128, 6144, True),
}
VOCAB, LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, TIED = SHAPES[os.environ.get("ENGINES_MODEL", "small")]
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
    "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": INTERMEDIATE,
    "vocab_size": VOCAB, "tie_word_embeddings": TIED, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "attention_bias": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
