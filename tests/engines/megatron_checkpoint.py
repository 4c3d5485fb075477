"""Reads and writes Hugging Face checkpoints of a small Qwen3 for megatron-core, tensor-parallel or not. Written
for these tests alone, by Megatron's own code, so that it knows nothing of what the job does."""

import re

import torch
from megatron.core import parallel_state
from qwen3_shape import HEAD_DIM, HEADS, KV_HEADS

OTHERS = {
    "embedding.word_embeddings": "model.embed_tokens",
    "decoder.final_layernorm": "model.norm",
    "output_layer": "lm_head",
}
IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "self_attention.linear_proj": "self_attn.o_proj",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc2": "mlp.down_proj",
}
ROWS_SPLIT = ("embedding.word_embeddings", "output_layer")
COLUMNS_SPLIT = ("linear_proj", "linear_fc2")


def part_of(name, whole):
    """This rank's part of Megatron's parameter `name`, of a checkpoint's tensors by name."""
    tp, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    own = name.removesuffix(".weight")
    if own in OTHERS:
        found = whole[f"{OTHERS[own]}.weight"]
        return found.chunk(tp)[rank] if own in ROWS_SPLIT else found
    number, own = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", own).groups()
    layer = f"model.layers.{number}."
    if own == "self_attention.linear_qkv":  # Each group of queries, then its key and its value.
        q, k, v = (whole[f"{layer}self_attn.{x}_proj.weight"].unflatten(0, (KV_HEADS, -1)) for x in "qkv")
        assert q.shape[1] == HEADS // KV_HEADS * HEAD_DIM
        return torch.cat((q, k, v), 1).flatten(0, 1).chunk(tp)[rank]
    if own == "mlp.linear_fc1":
        return torch.cat([whole[f"{layer}mlp.{x}_proj.weight"].chunk(tp)[rank] for x in ("gate", "up")])
    found = whole[f"{layer}{IN_LAYER[own]}.weight"]
    return found.chunk(tp, 1)[rank] if own.endswith(COLUMNS_SPLIT) else found


def load(model, whole):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(part_of(name, whole))


def gather(model, shapes):
    """The checkpoint's tensors, of shapes by name: on all ranks. The numbers of a checkpoint's elements, cut as
    `part_of` cuts them, say where each element of this rank's goes."""
    device = next(model.parameters()).device
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name], end = end, end + shape.numel()
    everywhere = torch.arange(end, dtype=torch.int32, device=device)  # Fewer than two billion elements.
    numbers = {name: everywhere[starts[name] :][: shape.numel()].view(shape) for name, shape in shapes.items()}
    group = parallel_state.get_tensor_model_parallel_group()
    ranks = range(parallel_state.get_tensor_model_parallel_world_size())
    flat = torch.full((end,), float("nan"), dtype=torch.bfloat16, device=device)
    for name, parameter in model.named_parameters():
        mine, places = parameter.detach().contiguous(), part_of(name, numbers).contiguous()
        all_mine, all_places = [torch.empty_like(mine) for _ in ranks], [torch.empty_like(places) for _ in ranks]
        torch.distributed.all_gather(all_mine, mine, group=group)
        torch.distributed.all_gather(all_places, places, group=group)
        for part, where in zip(all_mine, all_places, strict=True):
            flat[where.flatten().long()] = part.flatten()
    assert not flat.isnan().any()
    return {name: flat[starts[name] :][: shape.numel()].view(shape) for name, shape in shapes.items()}
