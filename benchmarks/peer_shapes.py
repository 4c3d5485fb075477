"""A dense Qwen3 model's tensors, as Megatron holds them and as SGLang holds them, on one GPU.

Names and shapes only: nothing here needs PyTorch. Megatron fuses query, key and value by groups of
heads, gate and up projection one after the other; SGLang fuses the same tensors in another order.
"""
import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Model:
    """A dense Qwen3 as published: the output layer is the embedding, no projection has a bias."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int = 128

    @property
    def qkv_rows(self):
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def hf_config(self):
        """The fields of a Hugging Face config that Awex's converters read."""
        return {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": self.layers,
                "hidden_size": self.hidden, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim}


MODELS = {
    "preset:qwen3-4b": Model(36, 2560, 32, 8, 9728, 151936),
    "tiny": Model(3, 64, 4, 2, 96, 128, 16),
}


def trainer_tensors(model):
    """(name, shape) as megatron-core names them with tensor parallel size 1."""
    yield "embedding.word_embeddings.weight", (model.vocab, model.hidden)
    for layer in range(model.layers):
        at = f"decoder.layers.{layer}."
        yield at + "self_attention.linear_qkv.layer_norm_weight", (model.hidden,)
        yield at + "self_attention.linear_qkv.weight", (model.qkv_rows, model.hidden)
        yield at + "self_attention.q_layernorm.weight", (model.head_dim,)
        yield at + "self_attention.k_layernorm.weight", (model.head_dim,)
        yield (at + "self_attention.linear_proj.weight",
               (model.hidden, model.heads * model.head_dim))
        yield at + "mlp.linear_fc1.layer_norm_weight", (model.hidden,)
        yield at + "mlp.linear_fc1.weight", (2 * model.intermediate, model.hidden)
        yield at + "mlp.linear_fc2.weight", (model.hidden, model.intermediate)
    yield "decoder.final_layernorm.weight", (model.hidden,)


def inference_tensors(model):
    """(name, shape) as SGLang names them with tensor parallel size 1."""
    yield "model.embed_tokens.weight", (model.vocab, model.hidden)
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (model.hidden,)
        yield at + "self_attn.qkv_proj.weight", (model.qkv_rows, model.hidden)
        yield at + "self_attn.q_norm.weight", (model.head_dim,)
        yield at + "self_attn.k_norm.weight", (model.head_dim,)
        yield at + "self_attn.o_proj.weight", (model.hidden, model.heads * model.head_dim)
        yield at + "post_attention_layernorm.weight", (model.hidden,)
        yield at + "mlp.gate_up_proj.weight", (2 * model.intermediate, model.hidden)
        yield at + "mlp.down_proj.weight", (model.hidden, model.intermediate)
    yield "model.norm.weight", (model.hidden,)


def elements(tensors):
    return sum(math.prod(shape) for _, shape in tensors)
