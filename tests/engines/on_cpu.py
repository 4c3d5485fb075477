"""Lets megatron-core run on a CPU: where it names CUDA in factories and streams, the CPU is taken."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode


class CudaIsCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs and isinstance(result, str):
            result = result.replace("torch.", "torch.cuda.")  # Megatron looks for these names.
        return result


class NoStream:
    def __getattr__(self, name):
        return lambda *_, **__: None


def pretend():
    """Before Megatron is imported."""
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.current_stream = lambda *_: NoStream()
    torch.cuda.empty_cache = lambda: None
    from megatron.core.tensor_parallel import random

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    CudaIsCpu().__enter__()
