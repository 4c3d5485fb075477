"""Megatron-core (DistributedDataParallel with DistributedOptimizer): a rank's parameters, masters and moments in
the job's memory. Layout of the job: `--trainer megatron:…`.

Parameters are views of the DDP's flat buffers, so whole buffers move, with everything that looks into them.
Megatron's own offloading of these buffers must be off: memory of others cannot be resized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _optimizers
from ._matching import difference, names_of, refuse, register_tensors, resolve_copy
from ._tensors import all_that_look_into, empty, round_up
from ._watched import watch
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine, Tensor

__all__ = ["adopt", "optimizer_bytes", "register", "weights_bytes"]


def weights_bytes(chunks: Any) -> int:
    """Bytes to ask for (`attach(memory={"weights": …})`): the DDP's parameter buffers, with their padding."""
    total = 0
    for chunk in _list(chunks):
        buffers = _buffers(chunk)
        total += sum(round_up(_bytes(b.param_data)) for b in buffers)
        inside = {id(p) for b in buffers for p in b.params}
        others = [t for t in _named_tensors([chunk]).values() if id(t) not in inside]
        total += sum(round_up(_bytes(t)) for t in others)
    return total


def optimizer_bytes(optimizer: Any) -> int:
    """Bytes to ask for (`attach(memory={"optimizer": …})`): masters, moments and step counts of this rank's
    shards. Before the optimizer's first step this makes its moments (zeros), as Megatron itself does before
    it loads a checkpoint; WrongRequest where neither it nor Megatron can (SGD)."""
    total = 0
    for one in _chained(optimizer):
        inner = one.optimizer
        _create_state(one)
        total += _optimizers.optimizer_bytes(inner)
        views = {id(t) for t in _flat(getattr(one, "shard_fp32_groups", []))}
        for _, _, parameter in _optimizers.parameters_of(inner):
            if id(parameter) not in views:
                total += round_up(_bytes(parameter))
    return total


def adopt(engine: Engine, chunks: Any, optimizer: Any = None, *, copy: bool | None = None) -> None:
    """Moves what Megatron's DDP (`chunks`: one, or the list of a virtual pipeline) and its optimizer hold, and
    declares it. Parameters stay the same objects. Call it between two steps, or before the first, with
    overlap_param_gather off.

    copy: as of awex_colocate.torch.adopt. Raises WrongRequest that lists what does not fit, before anything
    is changed."""
    copies = resolve_copy(engine, copy)
    chunks = _list(chunks)
    tensors = _named_tensors(chunks)
    _refuse_differences(engine, tensors)
    for chunk in chunks:
        for buffer in _buffers(chunk):
            _move_buffer(engine, chunk, buffer, copies)
    memory = engine.memory("weights")
    for place in engine.layout():
        tensor = tensors[place.name]
        if not memory.address <= tensor.data_ptr() < memory.address + memory.bytes:
            _move_alone(engine, tensor, copies)
        _declare(engine, place, tensor)
        watch(engine, place.name, tensor.data_ptr(), lambda t=tensor: t)
    _adopt_optimizers(engine, optimizer)


def register(engine: Engine, chunks: Any, optimizer: Any = None) -> None:
    """Declares the parameters that Megatron's DDP holds where they are, in memory of PyTorch's own, in place of
    moving them (attached with `own_weights`). With the optimizer, its state moves into the job's memory as `adopt`
    has it. Raises WrongRequest that lists what differs from the layout."""
    tensors = _named_tensors(_list(chunks))
    _refuse_differences(engine, tensors)
    register_tensors(engine, [(p, [lambda t=tensors[p.name]: t]) for p in engine.layout()])
    _adopt_optimizers(engine, optimizer)


def _adopt_optimizers(engine: Engine, optimizer: Any) -> None:
    for one in _chained(optimizer):
        _mark_views(engine, one)
        _create_state(one)
        _optimizers.adopt_optimizer(engine, one.optimizer)


def _list(chunks: Any) -> list[Any]:
    return list(chunks) if isinstance(chunks, Sequence) else [chunks]


def _chained(optimizer: Any) -> list[Any]:
    if optimizer is None:
        return []
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _create_state(one: Any) -> None:
    """Moments before the first step, by what Megatron keeps for it (`init_state_fn`: Adam of Transformer Engine and
    Apex, Lion). Torch's own Adam is awex_colocate.torch's."""
    create = getattr(one, "init_state_fn", None)
    if create is None or isinstance(one.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return
    create(one.optimizer, one.config)


def _buffers(chunk: Any) -> list[Any]:
    found = list(getattr(chunk, "buffers", []) if not callable(getattr(chunk, "buffers", None)) else [])
    if not found:
        raise WrongRequest(
            f"{type(chunk).__name__} is no DistributedDataParallel of Megatron-core",
            "pass what Megatron wraps the model in; plain modules: engine.adopt(module)",
        )
    found += getattr(chunk, "expert_parallel_buffers", [])
    if any(b.param_data is None for b in found):
        raise WrongRequest(
            "Megatron's DDP holds no parameters in its buffers",
            "use_distributed_optimizer=True is what makes it hold them",
        )
    return found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flat(groups: Any) -> Iterator[torch.Tensor]:
    for group in groups:
        for tensor in group:
            if tensor is not None:
                yield tensor


def _named_tensors(chunks: list[Any]) -> dict[str, torch.Tensor]:
    """By Megatron's names, without the names of what wraps the model."""
    found: dict[str, torch.Tensor] = {}
    for number, chunk in enumerate(chunks):
        module = chunk
        while hasattr(module, "module") and isinstance(module.module, torch.nn.Module):
            module = module.module
        prefix = f"chunk{number}." if number else ""
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        found |= {prefix + name: tensor for name, tensor in named}
    return found


def _refuse_differences(engine: Engine, tensors: dict[str, torch.Tensor]) -> None:
    wrong = []
    places = {place.name: place for place in engine.layout()}
    for name, place in places.items():
        if name not in tensors:
            wrong.append(f"{name} is missing")
        elif why := difference(tensors[name], place):
            wrong.append(f"{name} {why}")
    known = {id(tensors[name]) for name in places if name in tensors}
    wrong += [
        f"{name} {list(t.shape)} is not in the layout"
        for name, t in tensors.items()
        if isinstance(t, torch.nn.Parameter) and name not in places and id(t) not in known
    ]
    refuse(
        engine, wrong,
        "compare --trainer of the job (megatron: tp, pp, ep, spec=te|local, pad_vocab) with Megatron's own arguments",
    )  # fmt: skip


def _move_buffer(engine: Engine, chunk: Any, buffer: Any, copies: bool) -> None:
    """A flat buffer with all that looks into it: parameters, buckets, the optimizer's shards, and what
    those are views of, which would keep the old memory."""
    old = buffer.param_data
    storage = old.untyped_storage().data_ptr()
    new = empty(engine, "weights", (old.numel(),), old.dtype)
    if copies:
        with torch.no_grad():
            new.copy_(old.view(-1))
    base = new.storage_offset() - old.storage_offset()
    for tensor in all_that_look_into(storage):
        moved = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        moved.set_(new.untyped_storage(), base + tensor.storage_offset(), tensor.shape, tensor.stride())
        tensor.data = moved
    groups = [*getattr(chunk, "bucket_groups", []), *getattr(chunk, "expert_parallel_bucket_groups", [])]
    for group in groups:
        if hasattr(group, "cached_param_buffer_shard_list"):
            group.cached_param_buffer_shard_list = [None] * len(group.buckets)


def _move_alone(engine: Engine, tensor: torch.Tensor, copies: bool) -> None:
    """A tensor that lies in no buffer: frozen parameters, the routers' bias."""
    new = empty(engine, "weights", tensor.shape, tensor.dtype)
    if copies:
        with torch.no_grad():
            new.copy_(tensor)
    tensor.data = new


def _declare(engine: Engine, place: Tensor, tensor: torch.Tensor) -> None:
    offset = tensor.data_ptr() - engine.memory("weights").address
    engine.declare(place.name, place.dtype, place.rows, place.cols, offset)
    names_of(engine)[id(tensor)] = place.name


def _mark_views(engine: Engine, optimizer: Any) -> None:
    """The optimizer's shards of fp32 parameters lie in the buffers: they are no masters."""
    names = names_of(engine)
    for number, tensor in enumerate(_flat(getattr(optimizer, "shard_fp32_groups", []))):
        names[id(tensor)] = f"fp32_shard.{number}"
