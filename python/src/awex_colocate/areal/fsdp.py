"""AReaL's FSDP2 actor in a job. Imports AReaL."""

from __future__ import annotations

from areal.engine import FSDPPPOActor as _FSDPPPOActor

from .. import torch as support
from ..engine import Engine
from . import Colocated

__all__ = ["FSDPPPOActor"]


class FSDPPPOActor(Colocated, _FSDPPPOActor):
    """AReaL's actor with FSDP2, in a job whose trainer is `fsdp:shard=N`."""

    def _needs(self) -> dict[str, int]:
        return {
            "weights": support.weights_bytes(self.model),
            "optimizer": support.optimizer_bytes(self.optimizer, self.model),
        }

    def _adopt(self, engine: Engine) -> None:
        engine.adopt(self.model)
        engine.adopt_optimizer(self.optimizer)
