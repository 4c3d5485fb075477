"""Lets engines do on a CPU what they do on GPUs alone."""

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


def let_vllm_sleep():
    """vLLM may be started with enable_sleep_mode: it takes the memory that sleep mode gives away from the allocator that
    its plugin puts in place of vLLM's own, before it loads."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_worker import Worker

    from awex_colocate import vllm_memory

    def pool(worker, tag):
        sleeps = worker.vllm_config.model_config.enable_sleep_mode and tag in ("weights", "kv_cache")
        return vllm_memory.installed().use_memory_pool(tag) if sleeps else contextlib.nullcontext()

    vllm_memory.install()
    type(current_platform).is_sleep_mode_available = lambda _: True
    Worker._maybe_get_memory_pool_context = pool


def pretend():
    """Lets megatron-core run: where it names CUDA in factories and streams, the CPU is taken. Before it is imported."""
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.current_stream = lambda *_: NoStream()
    torch.cuda.empty_cache = lambda: None
    from megatron.core.tensor_parallel import random

    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    CudaIsCpu().__enter__()
