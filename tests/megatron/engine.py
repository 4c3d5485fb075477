"""What megatron-core itself builds for a Hugging Face config and a layout's options, on the CPU.

Written from megatron-core's own documentation of its options; it knows nothing of awex-colocate but
how a layout is spelled ("megatron:tp=2,pp=2,spec=local").
"""
import contextlib
import math
import types
import zlib

import torch
import torch.distributed
import torch.nn.functional
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout


def run_without_gpu():
    """Has megatron-core, which asks for the current GPU in many places, take the CPU instead."""
    torch.cuda.current_device = lambda: "cpu"
    torch.Tensor.cuda = lambda self, *_, **__: self
    # Without Transformer Engine these names of it are not what the code beside them expects.
    moe_utils.te_general_gemm = None
    multi_latent_attention.TELinear = type("TELinear", (), {})
    # Stock megatron-core 0.19 wants Transformer Engine's norm and projection in one for linear_q_proj,
    # that is where there is no q_lora_rank (small-deepseek-one-q), and refuses without it, whatever
    # the layer spec says. 0.18 builds what the spec names, as this does: no checkpoint has that norm.
    QKNormConfigResolver._mla_fused_linear_or_default = lambda self, projection, name: projection
    # Only dropout draws from it, and there is none.
    CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()


def options_of(spec):
    """The options of a layout with their defaults."""
    given = dict(part.split("=", 1) for part in spec.removeprefix("megatron:").split(","))
    assert given.pop("spec") == "local", "Transformer Engine needs a GPU"
    assert given.pop("experts", "sequential") == "sequential", "grouped experts need a GPU"
    number = {name: int(given.pop(name, 0))
              for name in ("tp", "pp", "vpp", "ep", "etp", "first", "last")}
    flag = {name: given.pop(name, "off") == "on"
            for name in ("account_for_embedding", "account_for_loss")}
    options = types.SimpleNamespace(
        **number, **flag, layout=given.pop("layout", None), pad_vocab=int(given.pop("pad_vocab", 128)),
        pad_with_tp=given.pop("pad_with_tp", "on") == "on")
    assert not given, given
    for name in ("tp", "pp", "ep", "vpp"):
        setattr(options, name, max(1, getattr(options, name)))
    options.etp = options.etp or options.tp
    if options.layout:
        stages = PipelineParallelLayerLayout.parse_str_to_list(options.layout)
        options.vpp = len(stages) // options.pp
    return options


def start_groups(options):
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=options.tp, pipeline_model_parallel_size=options.pp,
        virtual_pipeline_model_parallel_size=options.vpp if options.vpp > 1 else None,
        expert_model_parallel_size=options.ep, expert_tensor_parallel_size=options.etp)


def moe_layers(model):
    """1 for each layer that has experts, else 0."""
    dense = set(model.get("mlp_only_layers", [])) | set(range(model.get("first_k_dense_replace", 0)))
    return [int(layer not in dense) for layer in range(model["num_hidden_layers"])]


def moe_settings(model, options):
    experts = model.get("num_experts") or model.get("n_routed_experts")
    if not experts:
        return {}
    sigmoid = "n_routed_experts" in model
    shared = model.get("n_shared_experts", 0) * model["moe_intermediate_size"]
    return {
        "num_moe_experts": experts, "moe_ffn_hidden_size": model["moe_intermediate_size"],
        "moe_router_topk": model["num_experts_per_tok"], "moe_layer_freq": moe_layers(model),
        "moe_router_load_balancing_type": "none", "moe_token_dispatcher_type": "allgather",
        "moe_router_score_function": "sigmoid" if sigmoid else "softmax",
        "moe_router_enable_expert_bias": sigmoid,
        "moe_router_pre_softmax": not model["norm_topk_prob"],
        "moe_router_topk_scaling_factor": model.get("routed_scaling_factor"),
        "moe_shared_expert_intermediate_size": shared or None,
        "expert_model_parallel_size": options.ep, "expert_tensor_parallel_size": options.etp}


def attention_settings(model):
    if "kv_lora_rank" in model:
        return {"multi_latent_attention": True, "qk_layernorm": True, "rope_type": "rope",
                "rotary_base": model["rope_theta"], "rotary_scaling_factor": 1,
                "q_lora_rank": model["q_lora_rank"], "kv_lora_rank": model["kv_lora_rank"],
                "qk_head_dim": model["qk_nope_head_dim"],
                "qk_pos_emb_head_dim": model["qk_rope_head_dim"], "v_head_dim": model["v_head_dim"]}
    kind = model["model_type"]
    return {"kv_channels": model["head_dim"],
            "qk_layernorm": kind.startswith("qwen3") or model.get("use_qk_norm", False),
            "add_qkv_bias": kind == "qwen2" or model.get("attention_bias", False)}


def pipeline_settings(options):
    return {
        "pipeline_model_parallel_size": options.pp, "pipeline_dtype": torch.float32,
        "virtual_pipeline_model_parallel_size": options.vpp if options.vpp > 1 else None,
        "num_layers_in_first_pipeline_stage": options.first or None,
        "num_layers_in_last_pipeline_stage": options.last or None,
        "account_for_embedding_in_pipeline_split": options.account_for_embedding,
        "account_for_loss_in_pipeline_split": options.account_for_loss,
        "pipeline_model_parallel_layout": options.layout}


def transformer_config(model, options):
    kind = MLATransformerConfig if "kv_lora_rank" in model else TransformerConfig
    return kind(
        num_layers=model["num_hidden_layers"], hidden_size=model["hidden_size"],
        num_attention_heads=model["num_attention_heads"],
        num_query_groups=model["num_key_value_heads"], ffn_hidden_size=model["intermediate_size"],
        transformer_impl="local", normalization="RMSNorm",
        layernorm_epsilon=model["rms_norm_eps"], gated_linear_unit=True,
        activation_func=torch.nn.functional.silu, bias_activation_fusion=False, add_bias_linear=False,
        hidden_dropout=0.0, attention_dropout=0.0, masked_softmax_fusion=False, apply_rope_fusion=False,
        persist_layer_norm=False, gradient_accumulation_fusion=False, use_cpu_initialization=True,
        tensor_model_parallel_size=options.tp, **attention_settings(model),
        **moe_settings(model, options), **pipeline_settings(options))


def padded_vocab(model, options):
    multiple = options.pad_vocab * (options.tp if options.pad_with_tp else 1)
    return math.ceil(model["vocab_size"] / multiple) * multiple


class LatentCoreAttention(torch.nn.Module):
    """Causal attention of heads whose values are narrower than their keys, which megatron-core
    computes with Transformer Engine alone. It has no weights."""

    def __init__(self, *_, softmax_scale, **__):
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(self, query, key, value, *_, **__):
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale)
        return output.permute(2, 0, 1, 3).flatten(2)


def layer_specs(config, chunk):
    specs = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm",
                                       vp_stage=chunk)
    if config.multi_latent_attention:
        for spec in specs.layer_specs:
            attention = spec.submodules.self_attention.submodules
            attention.core_attention = LatentCoreAttention
            if config.q_lora_rank is None:  # refuses a norm that it would not use
                attention.q_layernorm = IdentityOp
    return specs


def build(model, options):
    """This rank's model, one module for each of its pipeline chunks."""
    config = transformer_config(model, options)
    last = options.pp - 1
    rank = parallel_state.get_pipeline_model_parallel_rank()
    rope = {} if "kv_lora_rank" in model else {
        "rotary_percent": model.get("partial_rotary_factor", 1.0), "rotary_base": model["rope_theta"]}
    chunks = []
    for chunk in range(options.vpp):
        stage = chunk if options.vpp > 1 else None
        chunks.append(GPTModel(
            config=config, vocab_size=padded_vocab(model, options),
            transformer_layer_spec=layer_specs(config, stage),
            max_sequence_length=model["max_position_embeddings"],
            pre_process=rank == 0 and chunk == 0,
            post_process=rank == last and chunk == options.vpp - 1, parallel_output=False,
            share_embeddings_and_output_weights=model["tie_word_embeddings"],
            position_embedding_type="rope", vp_stage=stage, **rope).eval())
    return chunks


def weights_of(chunks):
    """Every weight of this rank by megatron-core's own name; those of further chunks with "chunkN."
    before it."""
    weights = {}
    for number, chunk in enumerate(chunks):
        prefix = f"chunk{number}." if number else ""
        for name, value in chunk.state_dict(keep_vars=True).items():
            if isinstance(value, torch.Tensor):
                weights[prefix + name] = value
    return weights


def holder(weight):
    """Which of the different parts of a weight this rank has, by what megatron-core says of it."""
    is_expert = not getattr(weight, "allreduce", True)
    is_split = getattr(weight, "tensor_model_parallel", False)
    if is_expert:
        split = parallel_state.get_expert_tensor_parallel_rank()
        return parallel_state.get_expert_model_parallel_rank(), split if is_split else None
    return None, parallel_state.get_tensor_model_parallel_rank() if is_split else None


def randomize(weights):
    """Gives every weight random values, the same to all ranks that must hold the same."""
    for name, weight in weights.items():
        place = (name, parallel_state.get_pipeline_model_parallel_rank())
        if getattr(weight, "shared_embedding", False):
            place = "tied embedding"
        random = torch.Generator().manual_seed(zlib.crc32(repr((place, holder(weight))).encode()))
        values = torch.randn(weight.shape, generator=random)
        if weight.dim() > 1:
            values /= math.sqrt(weight.shape[-1])
        elif "norm" in name:
            values = 1 + values / 4
        else:
            values /= 4
        weight.data.copy_(values)


def hand_on(tensor, shape, source, target):
    """`tensor` of rank `source`, on rank `target`; on others what they had."""
    if torch.distributed.get_rank() == source:
        torch.distributed.send(tensor.contiguous(), target)
    if torch.distributed.get_rank() == target:
        tensor = torch.empty(shape)
        torch.distributed.recv(tensor, source)
    return tensor


def logits(chunks, model, tokens):
    """Of the whole model [batch, position, vocabulary], on ranks of the last stage; else None."""
    batch, length = tokens.shape
    mask = torch.ones(1, 1, length, length).triu(1).bool()
    positions = torch.arange(length).expand(batch, -1)
    ranks = torch.distributed.get_process_group_ranks(
        parallel_state.get_pipeline_model_parallel_group())
    here = torch.distributed.get_rank()
    output = None
    for chunk, module in enumerate(chunks):
        for stage, rank in enumerate(ranks):
            if chunk + stage > 0 and len(ranks) > 1:
                output = hand_on(output, (length, batch, model["hidden_size"]), ranks[stage - 1], rank)
            if rank == here:
                module.set_input_tensor(output)
                output = module(tokens, positions, mask)
    return output[:, :, :model["vocab_size"]] if here == ranks[-1] else None
