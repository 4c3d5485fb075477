"""PyTorch tensors in a job's memory: new ones, and those of modules and optimizers, which move there."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import _library
from .engine import Engine, Tensor
from .errors import WrongRequest

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

#: Where allocations of a tag begin: multiples of this many bytes.
ALIGNMENT = 512

DTYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float32: "f32",
    torch.float8_e4m3fn: "f8_e4m3",
    torch.float8_e5m2: "f8_e5m2",
}

#: Parts of the names that LoRA wrappers give.
LORA_PARTS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "base_layer", "modules_to_save"}


# Tensors at addresses


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


# Watching what was adopted


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


def _is_new(engine: Engine, tag: str) -> bool:
    """Whether a tag's memory is there and holds nothing: not what a former engine left, which may be away just now."""
    return engine.memory(tag).is_mapped and not engine.place.reattached


def adopt_tensor(engine: Engine, tag: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like `tensor` in a tag's memory, with its content unless the memory holds what a former
    engine left; declares it under `name` where the job can prove its dtype. Tags other than weights."""
    new = empty(engine, tag, tensor.shape, tensor.dtype)
    if _is_new(engine, tag):
        new.copy_(tensor)
    if tensor.numel() and tensor.dtype in DTYPE_NAMES:
        offset = new.data_ptr() - engine.memory(tag).address
        engine.declare(name, DTYPE_NAMES[tensor.dtype], 1, tensor.numel(), offset, tag)
    return new


# Modules


@dataclass
class _Held:
    """A module's parameter or buffer."""

    name: str
    owner: torch.nn.Module
    key: str
    tensor: torch.Tensor
    is_parameter: bool

    def current(self) -> torch.Tensor | None:
        slots = self.owner._parameters if self.is_parameter else self.owner._buffers
        return slots.get(self.key)

    def span(self) -> tuple[int, int]:
        begin = self.tensor.data_ptr()
        return begin, begin + self.tensor.numel() * self.tensor.element_size()


def _held_of(module: torch.nn.Module) -> list[_Held]:
    """All of a module's, those with two names twice. torch.compile's wrappers leave no trace in names."""
    found = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        parts = [part for part in prefix.split(".") if part and part != "_orig_mod"]
        for slots, is_parameter in ((owner._parameters, True), (owner._buffers, False)):
            for key, tensor in slots.items():
                if tensor is not None:
                    found.append(_Held(".".join([*parts, key]), owner, key, tensor, is_parameter))
    return found


def weights_bytes(module: torch.nn.Module) -> int:
    """Bytes to ask for (`attach(memory={"weights": …})`) where the layout's are not enough: FSDP2 whose
    shards are padded. At least what any rank's shards of this module need."""
    from . import fsdp2

    if shards := fsdp2.shards_of(module):
        return sum(_round_up(shard.padded_bytes) for shard in shards)
    return sum({h.span()[0]: _round_up(h.span()[1] - h.span()[0]) for h in _held_of(module)}.values())


def _round_up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


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
    from . import fsdp2

    copies = _resolve_copy(engine, copy)
    shards = fsdp2.shards_of(module)
    if shards:
        fsdp2.adopt_shards(engine, module, shards, copies)
        return
    held = _held_of(module)
    found = _match(engine, held, set(skip))
    moved: dict[int, torch.Tensor] = {}
    for place in engine.layout():
        first = found[place.name][0]
        new = tensor_at(engine, "weights", place.offset, first.tensor.shape, first.tensor.dtype)
        if copies:
            with torch.no_grad():
                new.copy_(first.tensor)
        for one in found[place.name]:
            _put(one, new, moved)
            watch(engine, one.name, new.data_ptr(), one.current)
        engine.declare(place.name, place.dtype, place.rows, place.cols, place.offset)
        engine._support.setdefault("names", {})[id(first.current())] = place.name


def register(engine: Engine, module: torch.nn.Module, *, skip: Sequence[str] = ()) -> None:
    """Declares a module's parameters and buffers that the job's layout names where they are, in memory of
    PyTorch's own: what cudaMalloc gave (its default) or expandable segments; without a GPU what
    `module.share_memory()` has made shared. Nothing is moved or copied. Where that memory moves
    (`own_weights="moves"`) the hook after_resume calls it again.

    skip: names of parameters that are not of the layout. Raises WrongRequest as `adopt` does, and for memory
    that no other process can map.
    """
    from . import fsdp2

    if shards := fsdp2.shards_of(module):
        chosen = fsdp2.matched(engine, shards)
        found = [(place, [lambda s=shard: s.local]) for place, shard in chosen]
        # The optimizer has the DTensors.
        engine._support.setdefault("names", {}).update({id(s.dtensor): place.name for place, s in chosen})
    else:
        held = _match(engine, _held_of(module), set(skip))
        found = [(place, [one.current for one in held[place.name]]) for place in engine.layout()]
    register_tensors(engine, found)


def register_tensors(
    engine: Engine, found: Sequence[tuple[Tensor, Sequence[Callable[[], torch.Tensor | None]]]]
) -> None:
    """Declares tensors where they are, each by its place in the layout and ways to look at it: of tied ones several."""
    if engine.own_weights is None:
        raise WrongRequest(
            "this engine was attached for weights in the job's memory",
            'attach(…, own_weights="stays"), or engine.adopt(module)',
        )
    names = engine._support.setdefault("names", {})
    addresses = [currents[0]().data_ptr() for _, currents in found]  # type: ignore[union-attr]
    for (place, _), address in zip(found, addresses, strict=True):
        engine.declare_own(place.name, place.dtype, place.rows, place.cols, address)
    for (place, currents), address in zip(found, addresses, strict=True):
        for current in currents:
            names[id(current())] = place.name
            if engine.own_weights == "stays":
                watch(engine, place.name, address, current, "where it was when it was registered")


def _resolve_copy(engine: Engine, copy: bool | None) -> bool:
    is_mapped = engine.memory("weights").is_mapped
    if copy is None:
        return is_mapped and not engine.place.reattached
    if copy and not is_mapped:
        raise WrongRequest(
            "weights cannot be copied: their memory is not mapped yet",
            "the job takes no weights that inference has loaded (--admission off): leave copy out",
        )
    return copy


def _put(held: _Held, new: torch.Tensor, moved: dict[int, torch.Tensor]) -> None:
    old = held.tensor
    if not old.is_meta:
        old.data = new
        return
    if id(old) not in moved:
        moved[id(old)] = (
            torch.nn.Parameter(new, requires_grad=old.requires_grad) if held.is_parameter else new
        )
    slots = held.owner._parameters if held.is_parameter else held.owner._buffers
    slots[held.key] = moved[id(old)]  # type: ignore[assignment]


def _match(engine: Engine, held: list[_Held], skip: set[str]) -> dict[str, list[_Held]]:
    """By the layout's names: the tensor of that name, then those tied to it."""
    _refuse_lora(held)
    by_name = {one.name: one for one in held}
    places = {place.name: place for place in engine.layout()}
    wrong = _wrong_shapes(by_name, places)
    found = {name: [by_name[name]] for name in places if name in by_name}
    at: dict[tuple[int, int], str] = {}
    for name, (one,) in found.items():
        key = _identity(one)
        if one.tensor.numel() and key in at:
            wrong.append(f"{name} and {at[key]} are one tensor here, and two in the layout")
        at[key] = name
    for one in held:
        if one.name in places:
            continue
        if (tied_to := at.get(_identity(one))) and one.tensor.numel():
            found[tied_to].append(one)
        elif one.is_parameter and one.tensor.numel() > 1 and one.name not in skip:
            wrong.append(f"{one.name} {list(one.tensor.shape)} is not in the layout")
    wrong += _overlaps(held, found)
    refuse(engine, wrong, _hint_for(by_name, places))
    return found


def _identity(held: _Held) -> tuple[int, int]:
    """Of tied tensors the same."""
    if held.tensor.is_meta:
        return id(held.tensor), -1
    return held.span()


def _refuse_lora(held: list[_Held]) -> None:
    for one in held:
        if LORA_PARTS & set(one.name.split(".")):
            raise WrongRequest(
                f"{one.name} is of a LoRA wrapper, which computes with more than the weights that the "
                "layout names",
                "merge the adapters (merge_and_unload) and adopt the plain module",
            )


def shape_fits(shape: Sequence[int], place: Tensor) -> bool:
    """Whether a tensor of `shape` is the place's matrix, vector or stack of matrices."""
    if len(shape) == 0:
        return place.elements == 1
    if len(shape) == 1:
        return 1 in (place.rows, place.cols) and place.elements == shape[0]
    return place.cols == shape[-1] and place.elements == torch.Size(shape).numel()


def _wrong_shapes(by_name: dict[str, _Held], places: dict[str, Tensor]) -> list[str]:
    wrong = []
    for name, place in places.items():
        if name not in by_name:
            wrong.append(f"{name} is missing")
            continue
        tensor = by_name[name].tensor
        if tensor.numel() == 0:
            wrong.append(f"{name} is empty: the engine computes with a packed copy of it")
        elif why := difference(tensor, place):
            wrong.append(f"{name} {why}")
        elif not tensor.is_contiguous():
            wrong.append(f"{name} is not contiguous: its strides are {list(tensor.stride())}")
    return wrong


def difference(tensor: torch.Tensor, place: Tensor) -> str | None:
    """In what a tensor differs from its place in the layout."""
    dtype = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    if dtype == place.dtype.lower() and shape_fits(tensor.shape, place):
        return None
    shape = list(tensor.shape)
    return f"is {dtype} {shape} here, {place.dtype} [{place.rows}, {place.cols}] in the layout"


def _overlaps(held: list[_Held], found: dict[str, list[_Held]]) -> list[str]:
    """Tensors of the layout that share memory with others, but for ties."""
    moving = {one.name for group in found.values() for one in group}
    spans = sorted(
        (one.span(), one.name) for one in held if one.tensor.numel() and not one.tensor.is_meta
    )
    wrong = []
    reach, reaching = (0, 0), ""
    for span, name in spans:
        if span[0] < reach[1] and span != reach and (name in moving or reaching in moving):
            wrong.append(f"{name} lies within the memory of {reaching}")
        if span[1] > reach[1]:
            reach, reaching = span, name
    return wrong


def _hint_for(by_name: dict[str, _Held], places: dict[str, Tensor]) -> str:
    if any(f"module.{name}" in by_name for name in places):
        return "adopt what the wrapper wraps (model.module), before it is wrapped"
    if any(by_name[name].tensor.numel() == 0 for name in places if name in by_name):
        return "turn the engine's packing of weights off before it loads them (docs/engines.md)"
    return "compare --trainer and --inference of the job with how this engine was started: model, tp, ep, dtype"


def refuse(engine: Engine, wrong: list[str], hint: str) -> None:
    """Raises WrongRequest where there is anything wrong, with the first of it."""
    if not wrong:
        return
    most = 8
    more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
    place = engine.place
    raise WrongRequest(
        f"the module does not fit the layout {place.layout} of {place.model}: "
        + "; ".join(wrong[:most]) + more,
        hint,
    )  # fmt: skip


# Optimizers


def optimizer_bytes(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module | None = None
) -> int:
    """Bytes to ask for (`attach(memory={"optimizer": …})`) so that adopt_optimizer finds room. With the
    module, parameters of the optimizer that are not the module's (fp32 masters) count, too."""
    own = {id(p) for p in module.parameters()} if module is not None else None
    total = steps = 0
    for _, group, parameter in _parameters(optimizer):
        steps += 1
        local = _local(parameter)
        if own is not None and id(parameter) not in own:
            total += _round_up(local.numel() * local.element_size())
        state = optimizer.state.get(parameter)
        if state:
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.dim() > 0:
                    total += _round_up(_local(value).numel() * value.element_size())
        else:
            total += _moments(optimizer, group) * _round_up(local.numel() * local.element_size())
    return total + _round_up(4 * steps)


def _parameters(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            is_frozen = isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad
            if not is_frozen or optimizer.state.get(parameter):  # Megatron's masters are no Parameters.
                yield f"{number}.{index}", group, parameter


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor's shard; other tensors themselves."""
    return getattr(tensor, "_local_tensor", tensor)


def _moments(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise WrongRequest(
            f"nobody knows here what state {type(optimizer).__name__} will have",
            "take a first step, then size and adopt it",
        )
    return 3 if group.get("amsgrad") else 2


def _create_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor
) -> None:
    """Adam's state before its first step, as the first step would make it."""
    names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"][: _moments(optimizer, group)]
    on_device = group.get("capturable") or group.get("fused")
    state = optimizer.state[parameter]
    state["step"] = torch.zeros(
        (), dtype=torch.float32, device=_local(parameter).device if on_device else "cpu"
    )
    for name in names:
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def adopt_optimizer(engine: Engine, optimizer: torch.optim.Optimizer) -> None:
    """Moves an optimizer's state into the job's memory for `optimizer`, and declares it: all tensors of one
    dimension or more, created first where Adam or AdamW has taken no step yet; parameters that were not
    adopted as weights (fp32 masters), too. Step counts are copied there after every step. Where the
    memory holds what a former engine left, the optimizer has that state then, step counts as well. Call
    it after `adopt`, with the same parameters in the same order whoever attaches.

    Raises WrongRequest where the memory does not suffice (optimizer_bytes says what does), and for other
    optimizers that have taken no step."""
    names = engine._support.setdefault("names", {})
    count = engine._support["optimizers"] = engine._support.get("optimizers", 0) + 1
    prefix = "" if count == 1 else f"optimizer{count}."
    counted = []
    with torch.no_grad():
        for number, group, parameter in _parameters(optimizer):
            name = names.get(id(parameter))
            if name is None:
                name = names[id(parameter)] = f"{prefix}parameter.{number}"
                _adopt_into(engine, f"{name}.master", lambda p=parameter: p, _set_data)
            if not optimizer.state[parameter]:
                _create_state(optimizer, group, parameter)
            state = optimizer.state[parameter]
            for key, value in list(state.items()):
                if isinstance(value, torch.Tensor) and value.dim() > 0:
                    _adopt_state(engine, f"{name}.{key}", optimizer, parameter, key)
            if "step" in state:
                counted.append(parameter)
        _adopt_steps(engine, optimizer, counted, f"{prefix}steps")


def _all_objects() -> list[Any]:
    """All that the garbage collector knows; what was frozen (gc.freeze), as vLLM does once it is up, too."""
    is_frozen = gc.get_freeze_count() > 0
    if is_frozen:
        gc.unfreeze()
    found = gc.get_objects()
    if is_frozen:
        gc.freeze()
    return found


def _all_that_look_into(storage: int) -> list[torch.Tensor]:
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


def _set_data(tensor: torch.Tensor, new: torch.Tensor) -> None:
    if hasattr(tensor, "_local_tensor"):
        tensor._local_tensor = new  # type: ignore[attr-defined]
    else:
        tensor.data = new


def _adopt_into(
    engine: Engine,
    name: str,
    current: Callable[[], torch.Tensor],
    put: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    """Moves the optimizer's tensor that `current` returns; `put` has the new one in its place."""
    new = adopt_tensor(engine, "optimizer", name, _local(current()))
    put(current(), new)
    if new.numel():
        watch(engine, name, new.data_ptr(), lambda: _local(current()))


def _adopt_state(
    engine: Engine,
    name: str,
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    key: str,
) -> None:
    # Asked for each time: load_state_dict makes another dict.
    def put(old: torch.Tensor, new: torch.Tensor) -> None:
        if hasattr(old, "_local_tensor"):
            old._local_tensor = new  # type: ignore[attr-defined]
        else:
            optimizer.state[parameter][key] = new

    _adopt_into(engine, name, lambda: optimizer.state[parameter][key], put)


def _adopt_steps(
    engine: Engine, optimizer: torch.optim.Optimizer, counted: list[torch.Tensor], name: str
) -> None:
    """A copy of the step counts, which lie in the process's own memory as a rule."""
    if not counted:
        return

    def states() -> list[dict[str, Any]]:
        return [optimizer.state[parameter] for parameter in counted]

    copy = adopt_tensor(engine, "optimizer", name, _step_counts(states()))

    def bring_back() -> None:
        for state, count in zip(states(), copy.tolist(), strict=True):
            if isinstance(state["step"], torch.Tensor):
                state["step"].fill_(count)
            else:
                state["step"] = int(count)

    if engine.place.reattached:
        _when_there(engine, "optimizer", bring_back)
    hook = optimizer.register_step_post_hook(lambda *_: copy.copy_(_step_counts(states())))
    engine._when_closed.append(hook.remove)


def _when_there(engine: Engine, tag: str, work: Callable[[], None]) -> None:
    """Now, or as soon as a tag's memory is back."""
    if engine.memory(tag).is_mapped:
        work()
        return
    due = [work]

    @engine.after_resume
    def resumed(which: str, _version: int) -> None:
        if which == tag and due:
            due.pop()()


def _step_counts(states: list[dict[str, Any]]) -> torch.Tensor:
    if isinstance(states[0]["step"], torch.Tensor):
        return torch.stack([state["step"].float() for state in states])
    return torch.tensor([float(state["step"]) for state in states])


# What a trainer keeps


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
