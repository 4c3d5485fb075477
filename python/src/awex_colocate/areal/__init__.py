"""AReaL: its actor and its SGLang take turns on the same GPUs by a job. Layouts of the job: `--trainer fsdp:…` or
`megatron:…`, `--inference sglang:…`.

    AWEX_COLOCATE_JOB=DIR python train.py …

where train.py takes its trainer from here, and nothing else changes:

    from awex_colocate.areal.trainer import PPOTrainer      # in place of areal's

The seam is AReaL's TrainEngine: `offload` hands the weights over with the memory, `onload` takes the memory back,
`update_weights` moves nothing of its own, and PPOTrainer's loop stays as it is. SGLang's side is awex_colocate.sglang.

This module needs neither AReaL nor PyTorch; `fsdp`, `megatron` and `trainer` beside it have the classes that AReaL
uses. Written for AReaL 1.0.4 as PyPI has it, and 2.0.0; docs/engines.md says what was run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from .._behind import Behind
from .._job import JOB_VARIABLE, PATIENCE_VARIABLE, job, patience
from .._versions import found_version, refuse_others
from ..engine import Engine, attach
from ..errors import WrongRequest

__all__ = ["JOB_VARIABLE", "NEWEST", "OLDEST", "PATIENCE_VARIABLE", "Colocated"]

OLDEST = "1.0.4"
NEWEST = "2.0.0"

_log = logging.getLogger(__name__)


class Colocated:
    """Goes before one of AReaL's TrainEngines among the bases of an actor: see `fsdp` and `megatron`.

    It attaches after `initialize` has returned, on a thread of its own: a job's engines attach together, and
    AReaL starts SGLang only then. What needs weights waits for it. So does the hand-over go on after `offload`
    has returned, as AReaL resumes SGLang only afterwards; `onload` waits for its end."""

    _joining: Behind[Engine] | None = None
    _handing_over: Behind[int] | None = None
    _is_away = False
    _due: int | None = None  # Version of AReaL's that update_weights has announced.

    # What a backend knows

    def _needs(self) -> dict[str, int]:
        """Bytes by tag of this engine's weights and optimizer state."""
        raise NotImplementedError

    def _adopt(self, engine: Engine) -> None:
        """Moves weights and optimizer state into the job's memory."""
        raise NotImplementedError

    # AReaL's TrainEngine

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """As AReaL's, then attaches. Raises WrongRequest for what cannot be in a job; what else does not fit is
        logged when it is found, and raised by the next call that needs weights."""
        refuse_actor(self.config)  # type: ignore[attr-defined]
        super().initialize(*args, **kwargs)  # type: ignore[misc]
        directory, needs, device = job(), self._needs(), getattr(self, "device", None)
        self._joining = Behind(lambda: self._join(directory, needs, device), "awex-attach")

    def update_weights(self, meta: Any) -> None:
        """Moves nothing: inference gets the weights with the memory, by the `offload` that follows. `meta`, a
        WeightUpdateMeta, may be of any type, but not of LoRA (WrongRequest)."""
        if meta.use_lora:
            raise WrongRequest("the weights of a LoRA adapter cannot be handed over", "train the whole model")
        self._due = meta.version or 0

    def offload(self) -> None:
        """Gives weights and memory to inference, whenever that is ready; nothing of them may be touched until
        `onload`. Raises what has failed since `initialize`."""
        if self._is_away:
            return
        engine = self._engine()
        if getattr(self, "optimizer", None) is not None:
            self.optimizer_zero_grad()  # type: ignore[attr-defined]
        engine._check()
        self._is_away, self._due = True, None
        self._handing_over = Behind(lambda: _hand_over(engine), "awex-hand-over")

    def onload(self) -> None:
        """Returns when weights and optimizer state are back. Raises what has failed since `offload`; called
        again then, it takes the memory back all the same."""
        if not self._is_away:
            return
        going, self._handing_over = self._handing_over, None
        if going is not None:
            going.result()
        self._engine().take_back(patience())
        self._is_away = False

    # What touches weights or optimizer state

    def optimizer_step(self) -> Any:
        engine = self._engine_with_memory("a step of the optimizer")
        if self._due is not None:
            raise WrongRequest(
                f"version {self._due} was announced by update_weights, and never handed over",
                "call offload() after update_weights(): the weights go with the memory",
            )
        with engine.writing():
            return super().optimizer_step()  # type: ignore[misc]

    def forward_backward_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._engine_with_memory("a forward pass")
        return super().forward_backward_batch(*args, **kwargs)  # type: ignore[misc]

    def save(self, meta: Any) -> Any:
        self._engine_with_memory("saving")
        return super().save(meta)  # type: ignore[misc]

    def load(self, meta: Any) -> Any:
        """Refused: it would replace tensors that lie in the job's memory."""
        raise WrongRequest(
            "weights cannot be loaded: they lie in the job's memory",
            "start from a checkpoint by actor.path, with recover.mode=disabled",
        )

    # Within

    def _join(self, directory: str, needs: dict[str, int], device: Any) -> Engine:
        try:
            engine = attach(
                "trainer",
                directory,
                device=None if device is None else str(device),
                memory=needs,
                name=f"areal {found_version('areal')}",
                timeout=patience(),
            )
            try:
                if engine.place.reattached:
                    raise WrongRequest(
                        "the job holds what an actor left, and AReaL begins from a checkpoint of its own",
                        "start awex-colocate serve anew together with AReaL",
                    )
                self._adopt(engine)
                engine.seal(patience())
            except BaseException:
                engine.close()
                raise
            return engine
        except BaseException as error:
            _log.error("the actor is not attached: %s", error)
            raise

    def _engine(self) -> Engine:
        if self._joining is None:
            raise WrongRequest("the actor is not attached", "call initialize() first")
        return self._joining.result()

    def _engine_with_memory(self, what: str) -> Engine:
        if self._is_away:
            raise WrongRequest(f"{what} needs memory that inference has", "call onload() first")
        return self._engine()


def _hand_over(engine: Engine) -> int:
    try:
        version = engine.hand_over(patience())
        if engine.memory("weights").is_mapped:
            raise WrongRequest(
                "the job leaves the actor's memory where it is (serve --no-offload)",
                "start it without --no-offload: AReaL's loop gives memory over",
            )
        return version
    except BaseException as error:
        _log.error("the hand-over has failed: %s", error)
        raise


def refuse_actor(config: Any) -> None:
    """Raises WrongRequest for what a TrainEngineConfig asks for and an actor in a job cannot do."""
    refuse_others("AReaL", found_version("areal"), OLDEST, NEWEST)
    if config.use_lora:
        raise WrongRequest("the actor trains with LoRA", "leave actor.use_lora out")
    kind = None if config.optimizer is None else config.optimizer.type
    if kind != "adam":
        raise WrongRequest(f"actor.optimizer.type is {kind!r}", "say adam: its state is known before a first step")
    if str(config.backend).startswith("megatron"):
        megatron = config.megatron
        wrong = {
            "ddp.use_distributed_optimizer=false": not megatron.ddp.use_distributed_optimizer,
            "ddp.overlap_param_gather=true": megatron.ddp.overlap_param_gather,
            "use_precision_aware_optimizer=true": megatron.use_precision_aware_optimizer,
        }
    else:
        wrong = {
            "offload_params=true": config.fsdp.offload_params,
            "per_layer_optim_step=true": config.fsdp.per_layer_optim_step,
        }
    for option, is_so in wrong.items():
        if is_so:
            group = "megatron" if str(config.backend).startswith("megatron") else "fsdp"
            raise WrongRequest(f"actor.{group}.{option} cannot be in a job", "leave it out")


def refuse_trainer(config: Any) -> None:
    """Raises WrongRequest for what a PPOConfig asks for and two engines in a job cannot do."""
    refuse_actor(config.actor)
    for role in ("actor", "rollout"):
        if getattr(getattr(config, role), "_version", "v1") != "v1":
            raise WrongRequest(
                f"{role}._version is {getattr(config, role)._version!r}, whose gateway moves weights by its own adapters",
                "say v1",
            )
    if not str(config.rollout.backend).startswith("sglang"):
        raise WrongRequest(f"rollout.backend is {config.rollout.backend!r}", "say sglang:…")
    if not _is_colocated(config):
        raise WrongRequest(
            "actor and rollout are not on the same GPUs",
            "say rollout.scheduling_strategy.type=colocation, target=actor (or actor's, target=rollout)",
        )


def _is_colocated(config: Any) -> bool:
    pairs = ((config.actor, "rollout"), (config.rollout, "actor"))
    strategies = ((getattr(one, "scheduling_strategy", None), other) for one, other in pairs)
    return any(
        s is not None and getattr(s.type, "value", s.type) == "colocation" and s.target == other
        for s, other in strategies
    )


def spread(specs: Iterable[Any]) -> None:
    """Has AReaL's workers (their SchedulingSpecs) find the job that this process does."""
    for spec in specs:
        spec.env_vars[JOB_VARIABLE] = job()
        if PATIENCE_VARIABLE in os.environ:
            spec.env_vars[PATIENCE_VARIABLE] = os.environ[PATIENCE_VARIABLE]
