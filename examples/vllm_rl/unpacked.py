"""Imported before vLLM loads a model on a CPU: it then computes with weights as they are. Otherwise it makes packed
copies of them while it loads, which no update of the weights would change. Nothing to do on a GPU."""

from vllm.platforms import current_platform

if current_platform.is_cpu():
    import vllm._custom_ops
    from vllm.model_executor.layers import utils

    vllm._custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False
