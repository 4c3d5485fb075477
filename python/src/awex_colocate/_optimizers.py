"""Optimizers: their state in the job's memory, created first where they have taken no step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ._matching import names_of
from ._tensors import adopt_tensor, local_of, round_up
from ._watched import watch
from .errors import WrongRequest

if TYPE_CHECKING:
    from .engine import Engine


def optimizer_bytes(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module | None = None
) -> int:
    """Bytes to ask for (`attach(memory={"optimizer": …})`) so that adopt_optimizer finds room. With the
    module, parameters of the optimizer that are not the module's (fp32 masters) count, too."""
    weights = None if module is None else {id(p) for p in module.parameters()}
    return _bytes_of(optimizer, weights)


def _bytes_of(optimizer: torch.optim.Optimizer, weights: Collection[int] | None) -> int:
    """Of all its state and, beside `weights` (ids), of its own parameters."""
    total = steps = 0
    for _, group, parameter in parameters_of(optimizer):
        steps += 1
        local = local_of(parameter)
        if weights is not None and id(parameter) not in weights:
            total += round_up(local.numel() * local.element_size())
        state = optimizer.state.get(parameter)
        if state:
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.dim() > 0:
                    total += round_up(local_of(value).numel() * value.element_size())
        else:
            total += _moments(optimizer, group) * round_up(local.numel() * local.element_size())
    return total + round_up(4 * steps)


def parameters_of(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[str, dict[str, Any], torch.Tensor]]:
    """Those that have state or will have it, with their place in the optimizer ("group.index") and their group."""
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            is_frozen = isinstance(parameter, torch.nn.Parameter) and not parameter.requires_grad
            if not is_frozen or optimizer.state.get(parameter):  # Megatron's masters are no Parameters.
                yield f"{number}.{index}", group, parameter


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
        (), dtype=torch.float32, device=local_of(parameter).device if on_device else "cpu"
    )
    for name in names:
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def adopt_optimizer(engine: Engine, optimizer: torch.optim.Optimizer) -> None:
    """Moves an optimizer's state into the job's memory for `optimizer`, and declares it: all tensors of one
    dimension or more, created first where Adam or AdamW has taken no step yet; parameters that were not
    adopted as weights (fp32 masters), too. Step counts are copied there after every step. Where the
    memory holds what a former engine left, the optimizer has that state then, step counts as well. Call
    it after `adopt`, with the same parameters in the same order whoever attaches.

    Raises WrongRequest, before anything is changed, where the memory does not suffice (optimizer_bytes says
    what does), and for other optimizers that have taken no step."""
    names = names_of(engine)
    _refuse_without_room(engine, optimizer, names)
    count = engine._support["optimizers"] = engine._support.get("optimizers", 0) + 1
    prefix = "" if count == 1 else f"optimizer{count}."
    counted = []
    with torch.no_grad():
        for number, group, parameter in parameters_of(optimizer):
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


def _refuse_without_room(
    engine: Engine, optimizer: torch.optim.Optimizer, names: Collection[int]
) -> None:
    asked = engine.memory("optimizer").bytes
    used = engine._support.get("optimizer_bytes", 0)
    needed = _bytes_of(optimizer, names)
    if needed <= asked - used:
        engine._support["optimizer_bytes"] = used + needed
        return
    parameters = [parameter for _, _, parameter in parameters_of(optimizer)]
    strange = sum(id(parameter) not in names for parameter in parameters)
    hint = "ask for more: attach(…, memory={'optimizer': optimizer_bytes(optimizer, model)})"
    if strange == len(parameters):
        hint = f"adopt the model that these parameters are of first; are they masters of their own, {hint}"
    raise WrongRequest(
        f"the optimizer needs {needed} bytes of memory, and {asked - used} of the {asked} that were asked for are "
        f"left; {strange} of its {len(parameters)} parameters are not adopted as weights, and counted in",
        hint,
    )


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
    new = adopt_tensor(engine, "optimizer", name, local_of(current()))
    put(current(), new)
    if new.numel():
        watch(engine, name, new.data_ptr(), lambda: local_of(current()))


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
