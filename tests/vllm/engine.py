"""What vLLM's own classes build for a Hugging Face config and a layout's options, on the CPU.

Written from vLLM's own options; it knows nothing of awex-colocate but how a layout is spelled
("vllm:tp=2,pp=2,ep=on").
"""
import os

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR",
                  VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1")

import torch
import vllm
import vllm._custom_ops
import vllm.model_executor.kernels.linear as linear_kernels
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.quantization.utils.quant_utils import scaled_dequantize
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.model_executor.models import utils as model_utils
from vllm.platforms import PlatformEnum
from vllm.utils.torch_utils import set_default_torch_dtype


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # of activations


def options_of(spec):
    """The options of a layout that say how ranks share a model and hold it, with their defaults. That
    a checkpoint is fp8, vLLM reads in its config.json."""
    given = dict(part.split("=", 1) for part in spec.removeprefix("vllm:").split(","))
    options = {name: int(given.pop(name, 1)) for name in ("tp", "pp", "dp")}
    options["ep"] = given.pop("ep", "off") == "on"
    options["dtype"] = DTYPES[given.pop("dtype", "bf16")]
    options["moe_backend"] = given.pop("moe_backend", "auto")
    for name in ("block", "deep_gemm", "stored_head"):  # DeepGEMM is not there; files say the others
        given.pop(name, None)
    assert not given, given
    return options


def keep_weights_plain():
    """Leaves out the packing that is for CPUs alone, and has fp8 taken by the kernels for GPUs, whose
    steps after loading run on a CPU too."""
    vllm._custom_ops._supports_onednn = False
    from vllm.model_executor.layers import utils
    utils.check_cpu_sgl_kernel = lambda *_: False
    kernel = linear_kernels.TritonFp8BlockScaledMMKernel
    kernel.is_supported = classmethod(lambda *_: (True, None))
    linear_kernels._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU] = [kernel]
    TritonExperts.is_supported_config = staticmethod(lambda *_: (True, None))


def config_of(checkpoint, spec, rank):
    """vLLM's configuration of one rank; ranks run tp, then pp, then dp."""
    options = options_of(spec)
    arguments = EngineArgs(
        model=str(checkpoint), skip_tokenizer_init=True, dtype=options["dtype"], enforce_eager=True,
        max_model_len=64, tensor_parallel_size=options["tp"], pipeline_parallel_size=options["pp"],
        enable_expert_parallel=options["ep"], moe_backend=options["moe_backend"], distributed_executor_backend="external_launcher")
    config = arguments.create_engine_config()
    parallel = config.parallel_config
    parallel.data_parallel_size = options["dp"]
    parallel.data_parallel_rank = rank // (options["tp"] * options["pp"])
    parallel.rank = rank % (options["tp"] * options["pp"])
    return config


def start_groups(config, rank, ranks, store):
    """All ranks are of one world, as with vLLM's external launcher."""
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["VLLM_DIST_IDENT"] = str(store).replace("/", "-")  # names shared memory of the CPU
    parallel = config.parallel_config
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            parallel_state.init_distributed_environment(ranks, rank, f"file://{store}", rank, "gloo")
        parallel_state.initialize_model_parallel(parallel.tensor_parallel_size,
                                                 parallel.pipeline_parallel_size)


def build(config):
    # It is keyed by id(), which a model of an earlier case may have had.
    model_utils._model_to_pp_missing_layer_names.clear()
    with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
        return initialize_model(config)


def load(config, model, weights):
    with set_current_vllm_config(config):
        model.load_weights(weights)


def after_loading(config, model):
    with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
        process_weights_after_loading(model, config.model_config, torch.device("cpu"))


def weights_of(model):
    """Every parameter by vLLM's own name."""
    return {name: value.data for name, value in model.named_parameters()}


def latent_attentions(model):
    return [module for module in model.modules() if isinstance(module, MLAAttention)]


def has_copies_of_kv_b(model):
    """Whether any W_UV or W_UK_T of latent attention is no view of kv_b_proj."""
    return any(part.untyped_storage().data_ptr() != module.kv_b_proj.weight.untyped_storage().data_ptr()
               for module in latent_attentions(model) for part in (module.W_UV, module.W_UK_T))


def is_up_to_date(module):
    """Whether W_UV and W_UK_T say what kv_b_proj does: for each head W_UK, then W_UV."""
    projection = module.kv_b_proj
    weight = projection.weight
    if hasattr(projection, "weight_scale_inv"):
        weight = scaled_dequantize(weight, projection.weight_scale_inv,
                                   group_shape=projection.weight_block_size, out_dtype=module.W_UV.dtype)
    heads = weight.view(module.num_heads, -1, module.kv_lora_rank)
    keys, values = heads.split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    return torch.equal(module.W_UK_T, keys) and torch.equal(module.W_UV, values.transpose(1, 2))


def follow_update(config, model):
    """Gives every kv_b_proj other values and does what the layout's note asks for: whether that helps,
    and is needed, and leaves all where it was."""
    stale = 0
    for module in latent_attentions(model):
        before = module.W_UV.data_ptr(), module.W_UK_T.data_ptr()
        weight = module.kv_b_proj.weight.data
        weight.copy_(torch.randint(1, 16, weight.shape))
        stale += not is_up_to_date(module)
        module.process_weights_after_loading(config.model_config.dtype)
        if not is_up_to_date(module) or before != (module.W_UV.data_ptr(), module.W_UK_T.data_ptr()):
            return False
    return stale > 0


def stop_groups():
    parallel_state.destroy_model_parallel()


def version():
    return vllm.__version__
