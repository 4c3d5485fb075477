"""A checkpoint in fp8, as DeepSeek-V3 and Qwen3-FP8 are published: the projections of attention and MLPs in e4m3, with a
scale for each block of 128 x 128."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128
LARGEST = 448.0  # of e4m3


def quantise(weight):
    rows, cols = weight.shape
    blocks = weight.float().reshape(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-4) / LARGEST
    wanted = (blocks / scales[:, None, :, None]).reshape(rows, cols)
    return wanted.to(torch.float8_e4m3fn), scales


def make(folder):
    """Of a checkpoint in one file, beside it; there already where it was made before. Returns where."""
    made = folder.with_name(folder.name + "-fp8")
    if made.exists():
        return made
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors[name], tensors[name + "_scale_inv"] = quantise(tensor)
        else:
            tensors[name] = tensor
    part = folder.with_name(folder.name + "-part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
    }  # fmt: skip
    (part / "config.json").write_text(json.dumps(config))
    save_file(tensors, part / "model.safetensors", {"format": "pt"})
    part.rename(made)
    return made
