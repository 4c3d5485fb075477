"""AReaL's PPOTrainer with an actor in a job. Imports AReaL."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from areal import PPOTrainer as _PPOTrainer
from areal.utils.environ import is_single_controller

from ..errors import WrongRequest
from . import refuse_trainer, spread

__all__ = ["PPOTrainer"]

#: By AReaL's names of training backends; imported where they are used, as AReaL does.
_ACTORS = {"fsdp": "FSDPPPOActor", "megatron": "MegatronPPOActor"}


class PPOTrainer(_PPOTrainer):
    """AReaL's PPOTrainer, its actor in the job that AWEX_COLOCATE_JOB names. Reference, critic and teacher stay
    AReaL's own. Raises WrongRequest, before anything is started, for what cannot be."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        refuse_trainer(config)
        if not is_single_controller():
            raise WrongRequest("AReaL runs in its SPMD mode", "start it by its single controller: python train.py")
        if not hasattr(_PPOTrainer, "_create_train_engine"):
            raise WrongRequest(
                "this AReaL's PPOTrainer makes its actor in a way not known here",
                "install AReaL 1.0.4 from PyPI, or 2.0.0 from its repository",
            )
        spread([*config.actor.scheduling_spec, *config.rollout.scheduling_spec])
        super().__init__(config, *args, **kwargs)

    def _create_train_engine(self, actor_config: Any, alloc: Any) -> Any:
        """Where AReaL chooses an actor's class: the one name used here that AReaL does not have as public."""
        if actor_config is not self.config.actor:
            return super()._create_train_engine(actor_config, alloc)
        if alloc.backend not in _ACTORS:
            raise WrongRequest(f"actor.backend is {alloc.backend!r}", f"say {' or '.join(_ACTORS)}")
        module = import_module(f".{alloc.backend}", __package__)
        actor = getattr(module, _ACTORS[alloc.backend]).as_controller(actor_config, self.scheduler)
        actor.create_process_group(parallel_strategy=alloc.parallel)
        return actor
