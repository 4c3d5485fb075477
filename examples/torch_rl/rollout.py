"""Generation with a KV cache, as the inference process and the check of it do it."""

from __future__ import annotations

import torch
from model import Qwen3
from task import LENGTH


@torch.no_grad()
def generate(
    model: Qwen3, prompt: torch.Tensor, cache: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled answers [batch, LENGTH], and the logits they were drawn from [batch, LENGTH, vocab]."""
    generator = torch.Generator(prompt.device).manual_seed(seed)
    logits = [model(prompt, 0, cache)[:, -1]]
    answer = [torch.multinomial(logits[0].softmax(-1), 1, generator=generator)]
    for position in range(prompt.shape[1], prompt.shape[1] + LENGTH - 1):
        logits.append(model(answer[-1], position, cache)[:, -1])
        answer.append(torch.multinomial(logits[-1].softmax(-1), 1, generator=generator))
    return torch.cat(answer, 1), torch.stack(logits, 1)
