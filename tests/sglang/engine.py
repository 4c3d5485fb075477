"""What SGLang's own classes build for a Hugging Face config and a layout's options, on the CPU.

Written from SGLang's own options; it knows nothing of awex-colocate but how a layout is spelled
("sglang:tp=2,pp=2,ep=2"). SGLang decides as on a Hopper GPU: PyTorch says that there is one, and
what it would allocate there lies in host memory. Kernels are never called, so their packages are
stubs.
"""
import importlib.abc
import importlib.machinery
import logging
import sys
import types
import typing
from unittest.mock import MagicMock

import torch
from torch.overrides import TorchFunctionMode

# Packages of kernels, and others that need them, of which loading weights uses nothing.
STUBS = {"sgl_kernel", "flashinfer", "deep_gemm", "deep_ep", "sgl_deep_ep", "cutlass", "flash_attn", "quack",
         "humming", "kernels", "tilelang", "torchao", "torchvision", "torchaudio", 
         "outlines", "openai_harmony", "decord", "decord2", "av", "soundfile", "timm", "modelscope"}


class Stub(types.ModuleType):
    """A module that has everything."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=name)
        setattr(self, name, value)
        return value


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] in STUBS:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


class OnTheCpu(TorchFunctionMode):
    """What is meant for a GPU goes to the CPU."""

    @staticmethod
    def moved(value):
        device = value if isinstance(value, str) else value.type if isinstance(value, torch.device) else ""
        return torch.device("cpu") if device.startswith("cuda") else value

    def __torch_function__(self, function, kinds, positional=(), named=None):
        named = named or {}
        if function is not torch.device:
            positional = [self.moved(value) for value in positional]
            named = {key: self.moved(value) for key, value in named.items()}
        return function(*positional, **named)


def pretend_hopper():
    cuda = torch.cuda
    gpu = types.SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 << 30,
                                multi_processor_count=132)
    answers = {"is_available": True, "device_count": 8, "current_device": 0, "set_device": None,
               "get_device_capability": (9, 0), "get_device_name": gpu.name, "get_device_properties": gpu,
               "mem_get_info": (79 << 30, 80 << 30), "synchronize": None, "empty_cache": None,
               "max_memory_allocated": 0, "memory_allocated": 0, "memory_reserved": 0}
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.Stream = MagicMock
    cuda.current_stream = lambda *_: MagicMock()
    OnTheCpu().__enter__()


def stub_kernels():
    # transformers asks by their metadata whether optional packages are there, once.
    from transformers.utils import import_utils
    import_utils.is_torchvision_available()
    sys.meta_path.append(StubFinder())


stub_kernels()
pretend_hopper()
logging.disable(logging.WARNING)

import sglang
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import parallel_state
from sglang.srt.distributed.device_communicators import pynccl
from sglang.srt.environ import envs
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.layers.moe.utils import initialize_moe_config
from sglang.srt.model_loader.loader import DefaultModelLoader
from sglang.srt.models import registry  # noqa: F401, imports all models before the processes fork
from sglang.srt.runtime_context import SpawnRanks, publish, reset_context
from sglang.srt.server_args import ServerArgs

CPU = torch.device("cpu")
# Ranks meet over gloo; loading sends nothing.
pynccl.PyNcclCommunicator = MagicMock
parallel_state.set_custom_all_reduce(False)


def options_of(spec):
    return dict(part.split("=", 1) for part in spec.removeprefix("sglang:").split(","))


def ranks_of(spec):
    """The ranks of one engine."""
    options = options_of(spec)
    return int(options.get("tp", 1)) * int(options.get("pp", 1))


def arguments_of(checkpoint, spec):
    options = options_of(spec)
    named = {"tp": "tp_size", "pp": "pp_size", "ep": "ep_size", "attn_dp": "attn_dp_size"}
    arguments = {named[key]: int(options.pop(key)) for key in [*options] if key in named}
    envs.SGLANG_ENABLE_EMBED_REPLICATION.set(options.pop("embed", "") == "replicated")
    for option in options.items():
        match option:
            case ("keeps_fp8", _) | ("dtype", "fp8") | ("block", "128"):
                pass  # config.json says it
            case ("dp_lm_head", "on"):
                arguments["enable_dp_lm_head"] = True
            case ("dense_mlp", "replicated"):
                arguments["moe_dense_tp_size"] = 1
            case ("shared_experts", "replicated"):
                arguments["moe_a2a_backend"] = "deepep"
            case ("fuse_shared", "on"):
                arguments["enforce_shared_experts_fusion"] = True
            case ("fuse_shared", "off"):
                arguments["disable_shared_experts_fusion"] = True
            case _:
                raise ValueError(f"{spec}: what is {option}?")
    return ServerArgs(model_path=str(checkpoint), dtype="bfloat16", device="cuda", skip_tokenizer_init=True,
                      **arguments)


def start(checkpoint, spec, rank, store):
    """One rank of one engine; ranks run tp, then pp. Returns its configuration."""
    arguments = arguments_of(checkpoint, spec)
    reset_context()
    publish(arguments, role="test", ranks=SpawnRanks(world_rank=rank))
    parallel_state.init_distributed_environment(
        world_size=ranks_of(spec), rank=rank, local_rank=rank, backend="gloo",
        distributed_init_method=f"file://{store}")
    parallel_state.initialize_model_parallel(backend="gloo")
    initialize_dp_attention(arguments)
    initialize_moe_config()
    return ModelConfig.from_server_args(arguments)


def build(config):
    device = types.SimpleNamespace(device="cpu")
    return DefaultModelLoader(LoadConfig()).initialize_model_for_startup(model_config=config,
                                                                        device_config=device)


def load(model, weights):
    DefaultModelLoader.load_weights_only(model, weights, CPU)


def after_loading(model):
    """All that SGLang does to weights after it has read them. Latent attention's step is within
    load_weights, too."""
    DefaultModelLoader.postprocess_weights(model, CPU)
    if hasattr(model, "post_load_weights"):
        model.post_load_weights()


def weights_of(model):
    """Every parameter by SGLang's own name, but for the scales of an fp8 KV cache, which the post-load
    step drops."""
    return {name: value.data for name, value in model.named_parameters()
            if not name.endswith((".k_scale", ".v_scale"))}


class LatentCopy(typing.NamedTuple):
    """What a latent attention computes with instead of kv_b_proj."""

    weight: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    key_width: int

    def is_right(self):
        by_head = self.weight.unflatten(0, (self.keys.shape[0], -1))
        return (torch.equal(self.keys, by_head[:, :self.key_width])
                and torch.equal(self.values, by_head[:, self.key_width:].mT))


def copies_of_kv_b(model):
    """Of every latent attention."""
    return [LatentCopy(module.kv_b_proj.weight.data, module.w_kc, module.w_vc, module.qk_nope_head_dim)
            for module in model.modules() if getattr(module, "w_kc", None) is not None]


def stop():
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def version():
    return sglang.__version__
