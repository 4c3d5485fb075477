"""A small Qwen3 in plain PyTorch, with Hugging Face's names, and a KV cache that its caller owns."""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}


@dataclass(frozen=True)
class Config:
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 128
    vocab_size: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    torch_dtype: str = "float32"

    def save(self, folder: Path) -> None:
        """As a config.json that transformers and awex-colocate read."""
        folder.mkdir(parents=True, exist_ok=True)
        fields = asdict(self) | {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
            "attention_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 1024,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(fields, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Config:
        fields = json.loads((folder / "config.json").read_text())
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__})


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim] at positions [tokens]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, c.hidden_size, bias=False)
        self.q_norm = RmsNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = RmsNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x: torch.Tensor, start: int, cache: torch.Tensor | None) -> torch.Tensor:
        c, (batch, tokens, _) = self.c, x.shape
        positions = torch.arange(start, start + tokens, device=x.device)
        q = self.q_norm(self.q_proj(x).view(batch, tokens, -1, c.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, tokens, -1, c.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, -1, c.head_dim).transpose(1, 2)
        q, k = rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta)
        if cache is not None:  # [2, batch, kv heads, tokens, head_dim]
            cache[0, :batch, :, start : start + tokens] = k
            cache[1, :batch, :, start : start + tokens] = v
            k, v = cache[:, :batch, :, : start + tokens]
        groups = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x: torch.Tensor, start: int, cache: torch.Tensor | None) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), start, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)


class Qwen3(nn.Module):
    """forward: tokens [batch, n] at positions from `start` on → logits [batch, n, vocab]. `cache`
    [layers, 2, batch, kv heads, positions, head_dim] holds the keys and values of what came before."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.config = config

    def forward(self, tokens: torch.Tensor, start: int = 0, cache: torch.Tensor | None = None) -> torch.Tensor:
        x = self.model.embed_tokens(tokens)
        for number, layer in enumerate(self.model.layers):
            x = layer(x, start, None if cache is None else cache[number])
        return self.lm_head(self.model.norm(x)).float()


def cache_shape(config: Config, batch: int, positions: int) -> tuple[int, ...]:
    return (config.num_hidden_layers, 2, batch, config.num_key_value_heads, positions, config.head_dim)


def save(model: Qwen3, folder: Path) -> None:
    """A checkpoint as Hugging Face writes them: config.json and model.safetensors."""
    model.config.save(folder)
    header, end, blobs = {}, 0, []
    for name, tensor in model.state_dict().items():
        whole = tensor.detach().cpu().contiguous()
        blob = ctypes.string_at(whole.data_ptr(), whole.numel() * whole.element_size())
        header[name] = {
            "dtype": DTYPES[str(tensor.dtype).removeprefix("torch.")][0],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(blob)],
        }
        end += len(blob)
        blobs.append(blob)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def load(model: Qwen3, folder: Path) -> None:
    """Copies a checkpoint's weights into the model's, cast to their dtype."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    by_name = dict(DTYPES.values())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            entry = header[name]
            begin, end = entry["data_offsets"]
            blob = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=8 + length + begin)
            tensor.copy_(blob.clone().view(by_name[entry["dtype"]]).view(entry["shape"]))


if __name__ == "__main__":  # model.py FOLDER: a checkpoint with random weights, where training begins
    torch.manual_seed(0)
    save(Qwen3(Config()), Path(sys.argv[1]))
