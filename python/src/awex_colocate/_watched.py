"""Tensors that must stay where they are, looked at before each consent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import WrongRequest

if TYPE_CHECKING:
    import torch

    from .engine import Engine


@dataclass
class _Watched:
    name: str
    address: int
    current: Callable[[], torch.Tensor | None]
    where: str


def watch(
    engine: Engine,
    name: str,
    address: int,
    current: Callable[[], torch.Tensor | None],
    where: str = "the job's memory since it was adopted",
) -> None:
    """Has the engine check, before each consent, that what `current` returns still lies at `address`."""
    watched = engine._support.setdefault("watched", [])
    if not watched:
        engine._checks.append(lambda: _check_watched(watched))
    watched.append(_Watched(name, address, current, where))


def _check_watched(watched: list[_Watched]) -> None:
    for one in watched:
        tensor = one.current()
        if tensor is None or tensor.data_ptr() != one.address:
            raise WrongRequest(
                f"{one.name} has left {one.where}",
                "module.to(), load_state_dict(assign=True) and optimizer.load_state_dict() replace tensors: "
                "call them before that, or copy into the tensors",
            )
