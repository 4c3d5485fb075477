"""A Qwen3 in megatron-core with DDP and DistributedOptimizer, on gloo, or NCCL on a GPU; under torchrun or alone."""

import os

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from files import DEVICE, ON_GPU
from qwen3_shape import HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, TIED, VOCAB


def build(tp=1, learning_rate=1e-3):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29555")
    torch.set_num_threads(1)
    if not torch.distributed.is_initialized():
        if ON_GPU:
            torch.cuda.set_device(DEVICE)
        torch.distributed.init_process_group("nccl" if ON_GPU else "gloo", rank=rank, world_size=world)
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
        if ON_GPU:
            model_parallel_cuda_manual_seed(0)
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=HIDDEN, num_attention_heads=HEADS, num_query_groups=KV_HEADS,
        kv_channels=HEAD_DIM, ffn_hidden_size=INTERMEDIATE, add_bias_linear=False, gated_linear_unit=True,
        activation_func=F.silu, normalization="RMSNorm", qk_layernorm=True, layernorm_epsilon=1e-6,
        hidden_dropout=0.0, attention_dropout=0.0, bf16=True, params_dtype=torch.bfloat16,
        use_cpu_initialization=True, tensor_model_parallel_size=tp, pipeline_dtype=torch.bfloat16,
        gradient_accumulation_fusion=False, masked_softmax_fusion=False, bias_activation_fusion=False,
        bias_dropout_fusion=False, apply_rope_fusion=False, persist_layer_norm=False,
        attention_softmax_in_fp32=True, deterministic_mode=ON_GPU,
    )  # fmt: skip
    model = GPTModel(
        config, get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"), vocab_size=VOCAB,
        max_sequence_length=128, position_embedding_type="rope", rotary_base=1000000,
        share_embeddings_and_output_weights=TIED,
    ).bfloat16()  # fmt: skip
    if ON_GPU:
        model.cuda()
    ddp = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=True, grad_reduce_in_fp32=True, overlap_grad_reduce=False,
            overlap_param_gather=False, bucket_size=None,
        ),
        model,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=learning_rate, bf16=True, params_dtype=torch.bfloat16,
            use_distributed_optimizer=True, clip_grad=1.0,
        ),
        [ddp],
    )  # fmt: skip
    return model, ddp, optimizer


def gradients(ddp, optimizer, step):
    """Forward and backward; returns the loss. The same for a step whoever asks."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, min(VOCAB, 1024), (2, 32), generator=generator)
    positions = torch.arange(32).repeat(2, 1)
    mask = torch.tril(torch.ones(1, 1, 32, 32)) < 0.5
    if ON_GPU:
        tokens, positions, mask = tokens.to(DEVICE), positions.to(DEVICE), mask.to(DEVICE)
    optimizer.zero_grad()
    ddp.zero_grad_buffer()
    loss = ddp(tokens, positions, mask, labels=tokens.roll(-1, 1)).float().mean()
    loss.backward()
    finalize_model_grads([ddp])  # Among tensor-parallel ranks, too: their q and k norms would drift apart.
    return loss.item()
