"""SGLang: its scheduler processes attach to a job, found by SGLang's plugin entry point. Layout of the job:
`--inference sglang:…`.

    AWEX_COLOCATE_JOB=DIR python …            # the job's directory, for every process of SGLang
    engine = sglang.Engine(model_path=…)      # adopts the job's memory while it loads, before CUDA graphs
    while True:
        engine.resume_memory_occupation()     # returns when SGLang serves a version that is newer
        engine.generate(…)
        engine.release_memory_occupation()    # from here the trainer may take the memory; returns at once

Who releases and resumes before the trainer has taken the memory goes on with the version that it served;
`engine.get_server_info()["internal_states"][0]["awex_colocate_version"]` says which.

Weights alone lie in the job's memory. SGLang's KV cache stays on the GPU, or goes and comes with the same calls
by SGLang's own memory saver (`enable_memory_saver=True`). SGLang only logs what a plugin
raises in its entry point, and answers for rank 0 alone: trust the job's commit (`awex-colocate status`).

Run with SGLang 0.5.14; read in the sources of 0.5.23.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ._behind import Behind
from ._job import JOB_VARIABLE, job, patience
from ._versions import found_version, refuse_others
from .engine import Engine, attach
from .errors import DeadlinePassed, WrongRequest

__all__ = ["JOB_VARIABLE", "NEWEST", "OLDEST", "engine", "register"]

OLDEST = "0.5.14"
NEWEST = "0.5.23"

_LOADED = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
_STATE = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"
_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"

#: What SGLang's memory saver gives away and takes back, besides weights.
SAVED = ("kv_cache", "cuda_graph")

#: Seconds that it takes at most to see that an offer is withdrawn.
GLANCE_S = 0.2

_engine: Engine | None = None
_is_sealed = False
_offer: _Offer | None = None


class _Offer:
    """SGLang's memory, for the next take-back of the job, until it is withdrawn. It stands while the scheduler
    does other things: a controller calls engines one after the other, and would wait here for the
    take-back that it has yet to ask the trainer for."""

    def __init__(self, attached: Engine) -> None:
        self._engine = attached
        self._withdrawn = threading.Event()
        self._standing = Behind(self._stand, "awex-offer")

    def _stand(self) -> bool:
        while not self._withdrawn.is_set():
            try:
                self._engine.release(GLANCE_S)
                return True
            except DeadlinePassed:
                continue
        return False

    def withdraw(self) -> bool:
        """Whether the memory has been taken meanwhile. Raises what `Engine.release` raised."""
        self._withdrawn.set()
        return self._standing.result()


def engine() -> Engine | None:
    """The engine that this process has attached, if any."""
    return _engine


def register() -> None:
    """Called by SGLang in each of its processes (entry point `sglang.srt.plugins`). Does nothing where
    AWEX_COLOCATE_JOB is not set."""
    if not os.environ.get(JOB_VARIABLE):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_LOADED, _load, HookType.AROUND)
    HookRegistry.register(_STATE, _tell_version, HookType.AFTER)
    HookRegistry.register(f"{_MANAGER}.release_memory_occupation", _release, HookType.AROUND)
    HookRegistry.register(f"{_MANAGER}.resume_memory_occupation", _resume, HookType.AROUND)


def _load(original: Callable[..., Any], runner: Any, *arguments: Any, **options: Any) -> Any:
    """Attaches with what a model runner loads; an exception ends the start of SGLang."""
    if getattr(runner, "is_draft_worker", False):
        return original(runner, *arguments, **options)
    _refuse(runner.server_args)
    with _without_saver(runner):
        result = original(runner, *arguments, **options)
    _attach(runner)
    return result


def _refuse(arguments: Any) -> None:
    refuse_others("SGLang", found_version("sglang"), OLDEST, NEWEST)
    if _engine is not None:
        raise WrongRequest("this process is attached already", "one model for each process of SGLang")
    if getattr(arguments, "enable_lora", False) or getattr(arguments, "lora_paths", None):
        raise WrongRequest("SGLang is started with LoRA", "leave it out")


@contextlib.contextmanager
def _without_saver(runner: Any) -> Iterator[None]:
    """Weights do not stay in SGLang's memory, and its memory saver would not give it back to the GPU."""
    saver = runner.memory_saver_adapter
    if saver.enabled:
        from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

        runner.memory_saver_adapter = TorchMemorySaverAdapter.create(enable=False)
    try:
        yield
    finally:
        runner.memory_saver_adapter = saver


def _attach(runner: Any) -> None:
    global _engine
    is_cuda = str(runner.device).startswith("cuda")
    attached = attach(
        "inference",
        job(),
        device=f"cuda:{runner.gpu_id}" if is_cuda else f"host:{getattr(runner, 'tp_rank', 0)}",
        name=f"sglang {found_version('sglang')}",
        timeout=patience(),
    )
    try:
        # SGLang captures CUDA graphs next, whether weights are there or not.
        attached.memory("weights").map_placeholder()
        attached.adopt(runner.model)
    except BaseException:
        attached.close()
        raise
    _engine = attached


def _seal(manager: Any, attached: Engine) -> None:
    """When SGLang is first told to release or resume: from here to the first version the weights' memory is gone, and
    until here SGLang computes with what it has loaded."""
    global _is_sealed
    if not _is_sealed:
        manager.flush_cache()
        attached.seal(patience())
        _is_sealed = True


def _tell_version(answer: Any, *_: Any) -> Any:
    if _engine is not None:
        answer.internal_state["awex_colocate_version"] = _engine.version
    return answer


def _names_weights(request: Any) -> bool:
    tags = getattr(request, "tags", None)
    return not tags or "weights" in tags


def _of_the_saver(manager: Any, request: Any) -> list[str]:
    """What SGLang's own memory saver is asked for: nothing where it is off."""
    if not manager.memory_saver_adapter.enabled:
        return []
    return [tag for tag in request.tags or SAVED if tag in SAVED]


def _release(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    global _offer
    if _engine is None:
        return original(manager, request)
    if not manager.is_fully_idle():
        raise WrongRequest("SGLang has requests that run", "abort them, or wait for them, before releasing memory")
    if tags := [tag for tag in _of_the_saver(manager, request) if tag not in manager.offload_tags]:
        original(manager, _struct("ReleaseMemoryOccupationReqInput", tags=tags))
    if _names_weights(request):
        _seal(manager, _engine)
        if _engine.version and _offer is None:
            manager.flush_cache()
            _offer = _Offer(_engine)
    return _struct("ReleaseMemoryOccupationReqOutput")


def _resume(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    global _offer
    if _engine is None:
        return original(manager, request)
    if _names_weights(request):
        _seal(manager, _engine)
        offer, _offer = _offer, None
        if offer is None or offer.withdraw():
            _engine.wait(timeout=patience())
    if tags := [tag for tag in _of_the_saver(manager, request) if tag in manager.offload_tags]:
        original(manager, _struct("ResumeMemoryOccupationReqInput", tags=tags))
    if _names_weights(request):
        manager.flush_cache()
    return _struct("ResumeMemoryOccupationReqOutput")


def _struct(name: str, **fields: Any) -> Any:
    from sglang.srt.managers import io_struct

    return getattr(io_struct, name)(**fields)
