"""The task: answer with the prompt's digits in ascending order. A verifier gives a reward for each digit."""

from __future__ import annotations

import torch

DIGITS = 10
ASK = 10  #: The token between prompt and answer.
LENGTH = 4


def prompts(version: int, count: int) -> torch.Tensor:
    """[count, LENGTH + 1], the same for a version whoever asks."""
    generator = torch.Generator().manual_seed(1000 + version)
    digits = torch.randint(0, DIGITS, (count, LENGTH), generator=generator)
    return torch.cat((digits, torch.full((count, 1), ASK)), 1)


def rewards(prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """[count, LENGTH]: 1 for every digit in its right place."""
    return (answer == prompt[:, :LENGTH].sort(1).values).float()
