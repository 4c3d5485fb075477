"""FSDP2 (`fully_shard`): each rank's shards in the job's memory. Layout of the job: `--trainer fsdp`.

Reads what PyTorch keeps privately (FSDPParam), of 2.6 to 2.13; other versions that lack it are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ._matching import Found, difference, names_of, refuse
from ._tensors import round_up, tensor_at
from ._watched import watch
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine, Tensor

__all__ = ["Shard", "adopt", "found_in", "shards_of", "weights_bytes"]


@dataclass
class Shard:
    """A parameter of which this rank holds a part."""

    names: list[str]  #: Those of tied modules, too.
    parameter: Any  #: PyTorch's FSDPParam, or a DTensor parameter that FSDP2 has not sharded.
    is_fsdp: bool

    @property
    def dtensor(self) -> Any:
        return self.parameter.sharded_param if self.is_fsdp else self.parameter

    @property
    def local(self) -> torch.Tensor:
        return self.dtensor._local_tensor

    @property
    def padded_bytes(self) -> int:
        """Bytes of this rank's part, padded to the largest part's rows."""
        count = self.parameter._sharded_param_data.numel() if self.is_fsdp else self.local.numel()
        return count * self.local.element_size()


def shards_of(module: torch.nn.Module) -> list[Shard]:
    """A module's parameters that are DTensors, in its order; empty for a plain module."""
    names = {id(owner): _clean(name) for name, owner in module.named_modules()}
    shards = []
    known: set[int] = set()
    for found in _fsdp_parameters(module):
        info = found._module_info
        owners = [(info.module, info.param_name)]
        owners += zip(info.shared_modules, info.shared_param_names, strict=True)
        shards.append(Shard([_join(names[id(o)], key) for o, key in owners if id(o) in names], found, True))
        known.add(id(found.sharded_param))
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "_local_tensor") and id(parameter) not in known:
            shards.append(Shard([_clean(name)], parameter, False))
    return shards


def _clean(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _fsdp_parameters(module: torch.nn.Module) -> Iterator[Any]:
    for one in module.modules():
        get_state = getattr(one, "_get_fsdp_state", None)
        if get_state is None:
            continue
        state = get_state()
        groups = getattr(state, "_fsdp_param_groups", None)  # Several in newer versions.
        if groups is None:
            group = getattr(state, "_fsdp_param_group", None)
            groups = [] if group is None else [group]
        for group in groups:
            for found in group.fsdp_params:
                if not hasattr(found, "_sharded_param_data") or not hasattr(found, "sharded_param"):
                    raise WrongRequest(
                        f"FSDP2 of PyTorch {torch.__version__} keeps its shards in a way not known here",
                        "use PyTorch 2.6 to 2.13",
                    )
                yield found


def weights_bytes(shards: list[Shard]) -> int:
    """What the job's memory has to hold of them, padding included."""
    return sum(round_up(shard.padded_bytes) for shard in shards)


def adopt(engine: Engine, shards: list[Shard], copies: bool) -> None:
    """Moves shards into the job's memory for weights and declares them: see awex_colocate.torch.adopt.
    Padding moves along, so ask for weights_bytes(module) where parts differ in size."""
    chosen = _matched(engine, shards)
    is_padded = any(s.padded_bytes != s.local.numel() * s.local.element_size() for _, s in chosen)
    memory = engine.memory("weights")
    for place, shard in chosen:
        offset = memory.alloc(shard.padded_bytes) - memory.address if is_padded else place.offset
        _move(engine, shard, offset, copies)
        engine.declare(place.name, place.dtype, place.rows, place.cols, offset)
        names_of(engine)[id(shard.dtensor)] = place.name
        watch(engine, place.name, shard.local.data_ptr(), lambda s=shard: s.local)


def found_in(engine: Engine, shards: list[Shard]) -> list[Found]:
    """The shards where they are. Raises WrongRequest that lists what differs."""
    chosen = _matched(engine, shards)
    names_of(engine).update({id(shard.dtensor): place.name for place, shard in chosen})  # An optimizer's.
    return [(place, [lambda s=shard: s.local]) for place, shard in chosen]


def _matched(engine: Engine, shards: list[Shard]) -> list[tuple[Tensor, Shard]]:
    """The shards that hold anything here, each with its place in the layout. Raises WrongRequest that lists what
    differs."""
    places = {place.name: place for place in engine.layout()}
    chosen = {id(s): next((n for n in s.names if n in places), s.names[0]) for s in shards}
    refuse(engine, _differences(shards, chosen, places), _HINT)
    return [(places[chosen[id(s)]], s) for s in shards if s.local.numel()]


_HINT = (
    "compare --trainer of the job (fsdp:shard=N) with the mesh, and the parameters' dtype with that of the job's "
    "model, which its config.json names (\"dtype\": \"float32\" for fp32 masters)"
)


def _differences(
    shards: list[Shard], chosen: dict[int, str], places: dict[str, Any]
) -> list[str]:
    wrong = []
    missing = dict(places)
    for shard in shards:
        name = chosen[id(shard)]
        place = missing.pop(name, None)
        if shard.is_fsdp and shard.parameter.sharded_state.name != "SHARDED":
            wrong.append(f"{name} is gathered now: adopt before a forward pass or after a backward pass")
        elif place is None and shard.local.numel():
            wrong.append(f"{name} {list(shard.local.shape)} is not in the layout")
        elif place is not None and (why := difference(shard.local, place)):
            wrong.append(f"{name} {why}")
    return wrong + [f"{name} is missing" for name in missing]


def _move(engine: Engine, shard: Shard, offset: int, copies: bool) -> None:
    local = shard.local
    if not shard.is_fsdp:
        new = tensor_at(engine, "weights", offset, local.shape, local.dtype)
        if copies:
            new.copy_(local.detach())
        shard.dtensor._local_tensor = new
        return
    found = shard.parameter
    old = found._sharded_param_data
    flat = tensor_at(engine, "weights", offset, (old.numel(),), local.dtype)
    if copies:
        flat.copy_(old.detach())
    dim = getattr(getattr(found, "fsdp_placement", None), "dim", 0)
    padded = flat.view(found.padded_sharded_param_size)
    found._sharded_param_data = flat  # What an all-gather reads,
    found.sharded_param._local_tensor = padded.narrow(dim, 0, local.size(dim))  # and the parameter.
