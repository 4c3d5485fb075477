"""How what an engine holds is compared with the job's layout, and declared by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ._tensors import DTYPE_NAMES, is_new
from ._watched import watch
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine, Tensor


def shape_fits(shape: Sequence[int], place: Tensor) -> bool:
    """Whether a tensor of `shape` is the place's matrix, vector or stack of matrices."""
    if len(shape) == 0:
        return place.elements == 1
    if len(shape) == 1:
        return 1 in (place.rows, place.cols) and place.elements == shape[0]
    return place.cols == shape[-1] and place.elements == torch.Size(shape).numel()


def difference(tensor: torch.Tensor, place: Tensor) -> str | None:
    """In what a tensor differs from its place in the layout."""
    dtype = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    if shape_fits(tensor.shape, place):
        return None if is_of_dtype(tensor, place) else f"is {dtype} here, {place.dtype} in the layout"
    shape = list(tensor.shape)
    return f"is {dtype} {shape} here, {place.dtype} [{place.rows}, {place.cols}] in the layout"


def is_of_dtype(tensor: torch.Tensor, place: Tensor) -> bool:
    return DTYPE_NAMES.get(tensor.dtype) == place.dtype.lower()


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


#: A tensor's place in the layout, and ways to look at it: of tied ones several.
Found = tuple["Tensor", Sequence[Callable[[], "torch.Tensor | None"]]]


def names_of(engine: Engine) -> dict[int, str]:
    """The layout's names of what has been adopted or registered, by the id of what an optimizer holds."""
    names: dict[int, str] = engine._support.setdefault("names", {})
    return names


def resolve_copy(engine: Engine, copy: bool | None) -> bool:
    """Whether weights are copied into the job's memory, where `copy` leaves it open: see awex_colocate.torch.adopt."""
    if copy is None:
        return is_new(engine, "weights")
    if copy and not engine.memory("weights").is_mapped:
        raise WrongRequest(
            "weights cannot be copied: their memory is not mapped yet",
            "the job takes no weights that inference has loaded (--admission off): leave copy out",
        )
    return copy


def register_tensors(engine: Engine, found: Sequence[Found]) -> None:
    """Declares tensors where they are."""
    if engine.own_weights is None:
        raise WrongRequest(
            "this engine was attached for weights in the job's memory",
            'attach(…, own_weights="stays"), or engine.adopt(module)',
        )
    names = names_of(engine)
    addresses = [currents[0]().data_ptr() for _, currents in found]  # type: ignore[union-attr]
    for (place, _), address in zip(found, addresses, strict=True):
        engine.declare_own(place.name, place.dtype, place.rows, place.cols, address)
    for (place, currents), address in zip(found, addresses, strict=True):
        for current in currents:
            names[id(current())] = place.name
            if engine.own_weights == "stays":
                watch(engine, place.name, address, current, "where it was when it was registered")
