"""PyTorch tensors that lie in a tag's memory: new ones, and those that take others' place."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _library
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine

#: Where allocations of a tag begin: multiples of this many bytes.
ALIGNMENT = 512

DTYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float32: "f32",
    torch.float8_e4m3fn: "f8_e4m3",
    torch.float8_e5m2: "f8_e5m2",
}


class _DeviceBytes:
    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip


def _bytes_at(engine: Engine, address: int, count: int, is_mapped: bool) -> torch.Tensor:
    if engine.place.backend == "host":
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=torch.uint8)
    device = torch.device("cuda", engine.device_index)
    if is_mapped:
        found = torch.as_tensor(_DeviceBytes(address, count), device=device)
    else:  # Nobody can be asked whose address it is.
        storage = torch._C._construct_storage_from_data_pointer(address, device, count)
        found = torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (count,), (1,))
    if found.data_ptr() != address:
        raise WrongRequest(
            f"PyTorch has copied the memory at {address:#x}: it is not of {device}",
            "attach with the device that the job's rank uses",
        )
    return found


def tensor_at(
    engine: Engine, tag: str, offset: int, shape: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """A contiguous tensor of `shape` that lies `offset` bytes into a tag's memory; nothing is copied or
    touched. Raises WrongRequest where it does not fit in."""
    size = torch.Size(shape)
    count = size.numel() * dtype.itemsize
    memory = engine.memory(tag)
    if offset + count > memory.bytes:
        raise WrongRequest(
            f"{list(size)} of {dtype} at byte {offset} end behind the {memory.bytes} bytes of {tag}",
            f"ask for more: attach(…, memory={{'{tag}': bytes}})",
        )
    if count == 0:
        return torch.empty(size, dtype=dtype, device=_torch_device(engine))
    return _bytes_at(engine, memory.address + offset, count, memory.is_mapped).view(dtype).view(size)


def empty(engine: Engine, tag: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A new contiguous tensor in a tag's memory, 512-byte aligned, its content undefined. It is never given
    back. May be made while the memory is not mapped, as a KV cache is, and touched while it is."""
    memory = engine.memory(tag)
    count = torch.Size(shape).numel() * dtype.itemsize
    if count == 0:
        return torch.empty(shape, dtype=dtype, device=_torch_device(engine))
    return tensor_at(engine, tag, memory.alloc(count) - memory.address, shape, dtype)


def _torch_device(engine: Engine) -> torch.device:
    if engine.place.backend == "host":
        return torch.device("cpu")
    return torch.device("cuda", engine.device_index)


def memory_pool(engine: Engine, tag: str) -> contextlib.AbstractContextManager[None]:
    """What this thread allocates on the GPU inside of it lies in a tag's memory (torch.cuda.MemPool). What
    is freed there is used again there, and never given back to others. Gradients of the backward
    thread lie elsewhere. Raises WrongRequest on `host`, where PyTorch has no pools."""
    if engine.place.backend != "cuda":
        raise WrongRequest(
            "PyTorch has memory pools on GPUs alone", f"use engine.empty({tag!r}, shape, dtype)"
        )
    if tag in engine._placed_ahead:
        raise WrongRequest(
            f"tensors were made in {tag} before it was mapped", "make all of them by engine.empty()"
        )
    pools = engine._support.setdefault("pools", {})
    if tag not in pools:
        allocator = torch.cuda.memory.CUDAPluggableAllocator(
            _library.library_path(), "awex_alloc", "awex_free"
        )
        pools[tag] = (torch.cuda.MemPool(allocator.allocator()), allocator)
    return _in_pool(engine, tag, pools[tag][0])


@contextlib.contextmanager
def _in_pool(engine: Engine, tag: str, pool: Any) -> Iterator[None]:
    active = engine._support.setdefault("active_tags", [])
    engine._call("awex_use", _library.TAGS.index(tag))
    active.append(tag)
    try:
        with torch.cuda.use_mem_pool(pool, device=engine.device_index):
            yield
    finally:
        active.pop()
        if active:
            engine._call("awex_use", _library.TAGS.index(active[-1]))


def is_new(engine: Engine, tag: str) -> bool:
    """Whether a tag's memory is there and holds nothing: not what a former engine left, which may be away just now."""
    return engine.memory(tag).is_mapped and not engine.place.reattached


def adopt_tensor(engine: Engine, tag: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like `tensor` in a tag's memory, with its content unless the memory holds what a former
    engine left; declares it under `name` where the job can prove its dtype. Tags other than weights."""
    new = empty(engine, tag, tensor.shape, tensor.dtype)
    if is_new(engine, tag):
        new.copy_(tensor)
    if tensor.numel() and tensor.dtype in DTYPE_NAMES:
        offset = new.data_ptr() - engine.memory(tag).address
        engine.declare(name, DTYPE_NAMES[tensor.dtype], 1, tensor.numel(), offset, tag)
    return new


def round_up(count: int) -> int:
    """To where the next allocation of a tag may begin."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor's shard; other tensors themselves."""
    return getattr(tensor, "_local_tensor", tensor)


def _all_objects() -> list[Any]:
    """All that the garbage collector knows; what was frozen (gc.freeze), as vLLM does once it is up, too."""
    is_frozen = gc.get_freeze_count() > 0
    if is_frozen:
        gc.unfreeze()
    found = gc.get_objects()
    if is_frozen:
        gc.freeze()
    return found


def all_that_look_into(storage: int) -> list[torch.Tensor]:
    """All tensors of this process whose storage begins at an address, and what they are views of: as long as one
    does, its memory is kept."""
    found: dict[int, torch.Tensor] = {}
    for one in _all_objects():
        while issubclass(type(one), torch.Tensor) and id(one) not in found:
            if one.layout != torch.strided or one.is_meta or type(one).__name__ == "FakeTensor":
                break
            if one.untyped_storage().data_ptr() != storage:
                break
            found[id(one)] = one
            one = one._base
    return list(found.values())
