"""The KV cache of vLLM in a job's memory while vLLM has CUDA graphs: by the allocator that its workers take the
memory from that sleep mode gives away. Imports vLLM."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from vllm.device_allocator.cumem import CuMemAllocator

from ._job import JOB_VARIABLE
from .engine import Engine
from .errors import WrongRequest

__all__ = ["CachesInJob", "JobAllocator", "install", "installed"]


class CachesInJob(TorchFunctionMode):
    """Has the storages of a KV cache lie in an engine's memory. vLLM makes each of them as so many zeros of one
    byte; tables that it makes beside them keep their content, and must lie elsewhere."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self.addresses: set[int] = set()  #: Of the storages.

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        is_cache = function is torch.zeros and named.get("dtype") is torch.int8
        if not is_cache or len(arguments) != 1 or not isinstance(arguments[0], int):
            return function(*arguments, **named)
        made = self._engine.empty("kv_cache", arguments, torch.int8).zero_()
        self.addresses.add(made.data_ptr())
        return made


class JobAllocator(CuMemAllocator):
    """vLLM's own but for two tags: weights lie where PyTorch puts them until they move into the job's memory,
    which sleep mode's pool would not let go, and the KV cache is allocated in the job's memory. What vLLM computes
    before its first version it computes over a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited: CachesInJob | None = None  #: The KV cache that is allocated next.

    def use(self, engine: Engine) -> CachesInJob:
        """Has the KV cache that vLLM allocates next lie in an engine's memory; that of another LLM of this process
        does not."""
        engine.memory("kv_cache").map_placeholder()
        self._awaited = CachesInJob(engine)
        return self._awaited

    @contextlib.contextmanager
    def use_memory_pool(self, tag: str | None = None) -> Iterator[None]:
        if tag == "weights":
            self._awaited = None  # Of an LLM whose start has failed.
            yield
        elif tag == "kv_cache" and self._awaited is not None:
            caches, self._awaited = self._awaited, None
            with caches:
                yield
        else:
            with super().use_memory_pool(tag):
                yield

    def sleep(self, *_: Any, **__: Any) -> None:
        """Refused: vLLM would discard memory that it has not, and serve nothing after it."""
        raise WrongRequest(
            f"vLLM's sleep mode would give away what is the job's to give ({JOB_VARIABLE} names one)",
            "awex_colocate.vllm.update and release give weights and KV cache to the trainer. vLLM has paused "
            'before it asked: llm.wake_up(tags=["scheduling"]) goes on',
        )

    wake_up = discard = sleep


def install() -> None:
    """Before vLLM loads a model. Nothing where its allocator has been used already."""
    if CuMemAllocator.instance is None:
        end = CuMemAllocator._shutdown_singleton
        CuMemAllocator.instance = JobAllocator()
        atexit.register(end)


def installed() -> JobAllocator | None:
    found = CuMemAllocator.instance
    return found if isinstance(found, JobAllocator) else None
