"""PyTorch tensors in a job's memory: new ones, and those of modules and optimizers, which move there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import _modules, fsdp2
from ._matching import register_tensors, resolve_copy
from ._optimizers import adopt_optimizer, optimizer_bytes
from ._tensors import adopt_tensor, empty, memory_pool, tensor_at

if TYPE_CHECKING:
    from .engine import Engine

__all__ = [
    "adopt",
    "adopt_optimizer",
    "adopt_tensor",
    "empty",
    "memory_pool",
    "optimizer_bytes",
    "random_state",
    "register",
    "restore_random_state",
    "tensor_at",
    "weights_bytes",
]


def weights_bytes(module: torch.nn.Module) -> int:
    """Bytes to ask for (`attach(memory={"weights": …})`) where the layout's are not enough: FSDP2 whose
    shards are padded. At least what any rank's shards of this module need."""
    if shards := fsdp2.shards_of(module):
        return fsdp2.weights_bytes(shards)
    return _modules.weights_bytes(module)


def adopt(
    engine: Engine,
    module: torch.nn.Module,
    *,
    copy: bool | None = None,
    skip: Sequence[str] = (),
) -> None:
    """Moves a module's parameters and buffers that the job's layout names into the job's memory, and
    declares them. Parameters stay the same objects, so optimizers and tied modules follow; `meta`
    parameters are replaced. Call it before wrapping the module (DDP, torch.compile), after `fully_shard`.

    copy: whether their content moves along; None: unless the memory holds what a former engine left, or is not
    mapped (inference that is not admitted by digest). skip: names of parameters that are not of the
    layout, and stay where they are.

    Raises WrongRequest, before anything is changed, that lists what is missing, unknown, of another shape or
    dtype, empty (a packed copy is in use), not contiguous, aliased in another way than ties, or LoRA's.
    """
    copies = resolve_copy(engine, copy)
    if shards := fsdp2.shards_of(module):
        fsdp2.adopt(engine, shards, copies)
    else:
        _modules.adopt(engine, module, copies, set(skip))


def register(engine: Engine, module: torch.nn.Module, *, skip: Sequence[str] = ()) -> None:
    """Declares a module's parameters and buffers that the job's layout names where they are, in memory of
    PyTorch's own: what cudaMalloc gave (its default) or expandable segments; without a GPU what
    `module.share_memory()` has made shared. Nothing is moved or copied. Where that memory moves
    (`own_weights="moves"`) the hook after_resume calls it again.

    skip: names of parameters that are not of the layout. Raises WrongRequest as `adopt` does, and for memory
    that no other process can map.
    """
    if shards := fsdp2.shards_of(module):
        register_tensors(engine, fsdp2.found_in(engine, shards))
    else:
        register_tensors(engine, _modules.found_in(engine, module, set(skip)))


def random_state() -> bytes:
    """PyTorch's random state of the CPU and, where it is used, of the current GPU, for Engine.keep."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    blob = io.BytesIO()
    torch.save(state, blob)
    return blob.getvalue()


def restore_random_state(blob: bytes) -> None:
    """Sets what `random_state` returned."""
    state = torch.load(io.BytesIO(blob), weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
