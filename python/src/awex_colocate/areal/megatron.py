"""AReaL's Megatron-core actor in a job. Imports AReaL."""

from __future__ import annotations

from areal.engine import MegatronPPOActor as _MegatronPPOActor

from .. import megatron as support
from ..engine import Engine
from . import Colocated

__all__ = ["MegatronPPOActor"]


class MegatronPPOActor(Colocated, _MegatronPPOActor):
    """AReaL's actor with Megatron-core, in a job whose trainer is `megatron:…`."""

    def _needs(self) -> dict[str, int]:
        return {
            "weights": support.weights_bytes(list(self.model)),
            "optimizer": support.optimizer_bytes(self.optimizer),
        }

    def _adopt(self, engine: Engine) -> None:
        support.adopt(engine, list(self.model), self.optimizer)
