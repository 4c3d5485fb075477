"""Attach a PyTorch trainer or inference engine to a job of `awex-colocate serve`.

    import awex_colocate

    engine = awex_colocate.attach("trainer", job_directory, memory={
        "optimizer": awex_torch.optimizer_bytes(optimizer, model)})
    engine.adopt(model)
    engine.adopt_optimizer(optimizer)
    engine.seal()
    engine.take_back()       # at once, unless a trainer before this one died while its memory was away
    while training:
        with engine.writing():
            optimizer.step()
        engine.hand_over()   # inference serves these weights now, in this memory
        engine.take_back()

docs/engines.md of the repository tells it from the beginning. This module needs no PyTorch.
"""

from ._library import library_path
from ._version import __version__
from .engine import Engine, Memory, Place, Tensor, attach
from .errors import (
    AwexError,
    DeadlinePassed,
    EngineLost,
    Failed,
    Mismatch,
    Status,
    WrongRequest,
)

__all__ = [
    "AwexError",
    "DeadlinePassed",
    "Engine",
    "EngineLost",
    "Failed",
    "Memory",
    "Mismatch",
    "Place",
    "Status",
    "Tensor",
    "WrongRequest",
    "__version__",
    "attach",
    "library_path",
]
