"""The KV cache of vLLM in a job's memory while vLLM has CUDA graphs: by the allocator that its workers take the
memory from that sleep mode gives away. Imports vLLM."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from typing import Any

from vllm.device_allocator.cumem import CuMemAllocator

from .engine import Engine
from .errors import WrongRequest

__all__ = ["JobAllocator", "install", "installed"]


class JobAllocator(CuMemAllocator):
    """vLLM's own but for two tags: weights lie where PyTorch puts them until they move into the job's memory,
    which sleep mode's pool would not let go, and the KV cache is allocated in the job's memory. What vLLM computes
    before its first version it computes over a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self._engine: Engine | None = None

    def use(self, engine: Engine) -> None:
        """Has the KV cache that vLLM allocates next lie in an engine's memory."""
        engine.memory("kv_cache").map_placeholder()
        self._engine = engine

    @contextlib.contextmanager
    def use_memory_pool(self, tag: str | None = None) -> Iterator[None]:
        if tag == "weights":
            yield
        elif tag == "kv_cache" and self._engine is not None:
            with self._engine.memory("kv_cache"):
                yield
        else:
            with super().use_memory_pool(tag):
                yield

    def sleep(self, *_: Any, **__: Any) -> None:
        """Refused: vLLM would discard memory that it has not, and serve nothing after it."""
        raise WrongRequest(
            "vLLM's sleep would give away what is the job's to give",
            "awex_colocate.vllm.update and release give weights and KV cache to the trainer",
        )

    wake_up = sleep


def install() -> None:
    """Before vLLM loads a model. Nothing where its allocator has been used already."""
    if CuMemAllocator.instance is None:
        CuMemAllocator.instance = JobAllocator()
        atexit.register(CuMemAllocator._shutdown_singleton)


def installed() -> JobAllocator | None:
    found = CuMemAllocator.instance
    return found if isinstance(found, JobAllocator) else None
