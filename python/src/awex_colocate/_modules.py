"""Plain modules: which of their tensors are the layout's, and moving them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import torch

from ._matching import Found, difference, is_of_dtype, names_of, refuse
from ._tensors import round_up, tensor_at
from ._watched import watch
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine, Tensor

#: Parts of the names that LoRA wrappers give.
LORA_PARTS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "base_layer", "modules_to_save"}


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
    """What the job's memory has to hold of it: ties count once."""
    return sum({h.span()[0]: round_up(h.span()[1] - h.span()[0]) for h in _held_of(module)}.values())


def adopt(engine: Engine, module: torch.nn.Module, copies: bool, skip: set[str]) -> None:
    """See awex_colocate.torch.adopt."""
    found = _match(engine, _held_of(module), skip)
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
        names_of(engine)[id(first.current())] = place.name


def found_in(engine: Engine, module: torch.nn.Module, skip: set[str]) -> list[Found]:
    """The layout's tensors where they are. Raises WrongRequest that lists what differs."""
    held = _match(engine, _held_of(module), skip)
    return [(place, [one.current for one in held[place.name]]) for place in engine.layout()]


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
    if of_layout := sorted(skip & places.keys()):
        raise WrongRequest(
            f"skip names {', '.join(of_layout)}, which the layout {engine.place.layout} holds",
            "skip is for parameters that the layout does not have",
        )
    wrong, unknown = _wrong_shapes(by_name, places), []
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
            unknown.append(f"{one.name} {list(one.tensor.shape)} is not in the layout")
    # In turns, so that some of both are seen where there are many.
    both = [what for what in chain.from_iterable(zip_longest(wrong, unknown)) if what]
    refuse(engine, both + _overlaps(held, found), _hint_for(engine, by_name, places))
    return found


def _identity(held: _Held) -> tuple[int, int]:
    """Of tied tensors the same."""
    if held.tensor.is_meta:
        return id(held.tensor), -1
    return held.span()


def _lacking_prefix(by_name: dict[str, _Held], places: dict[str, Tensor]) -> str:
    """Of all names of a part of the model; empty where they are not."""
    first = next((name for name, held in by_name.items() if held.is_parameter), "")
    longer = [name for name in places if first and name.endswith(f".{first}")]
    prefix = longer[0].removesuffix(first) if len(longer) == 1 else ""
    is_part = all(prefix + name in places for name, held in by_name.items() if held.is_parameter)
    return prefix if is_part else ""


def _refuse_lora(held: list[_Held]) -> None:
    for one in held:
        if LORA_PARTS & set(one.name.split(".")):
            raise WrongRequest(
                f"{one.name} is of a LoRA wrapper, which computes with more than the weights that the "
                "layout names",
                "merge the adapters (merge_and_unload) and adopt the plain module",
            )


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


def _hint_for(engine: Engine, by_name: dict[str, _Held], places: dict[str, Tensor]) -> str:
    if any(f"module.{name}" in by_name for name in places):
        return "adopt what the wrapper wraps (model.module), before it is wrapped"
    if prefix := _lacking_prefix(by_name, places):
        return f"adopt the whole model: the names of this part of it lack {prefix!r}"
    both = [(by_name[name].tensor, place) for name, place in places.items() if name in by_name]
    if any(tensor.numel() == 0 for tensor, _ in both):
        return "turn the engine's packing of weights off before it loads them (docs/engines.md)"
    if len(both) == len(places) and not any(is_of_dtype(tensor, place) for tensor, place in both):
        mine = "" if engine.role == "trainer" else ", or name its own in --inference (dtype=…)"
        return f"load the model in the dtype of the job's --model{mine}"
    return "compare --trainer and --inference of the job with how this engine was started: model, tp, ep, dtype"
