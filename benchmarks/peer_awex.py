#!/usr/bin/env python3
"""Awex's colocated update between two processes on one GPU, phase by phase, in seconds.

usage: peer_awex.py OUT.json MODEL WARM_CYCLES [--device cpu]

Awex's own code, called as it is (package awex):
- the trainer's converter from Megatron's names and layout, and SGLang's to views of the fused one;
- NCCLWeightsWriter._write_weights_in_colocate_mode: conversion, grouping into few tensors, CUDA IPC
  handles, waiting for the reader, letting go;
- NCCLWorkerWeightsReader._update_weights_in_colocate_mode: mapping, reconstruction, and applying by
  NcclColocateStreamBatchTransport along the plan of TransferPlanBuilder;
- what the names mean: RankInfo, ParameterMeta.

Written here, because Awex leaves it to an engine and needs one running:
- offloading and resuming, which are abstract in Awex. They do what public adapters for Megatron do:
  optimizer states go tensor by tensor through .to("cpu", non_blocking=True), which PyTorch pins and
  keeps; weights are one buffer with a pinned copy, whose storage shrinks to nothing;
- model and optimizer: modules with Megatron's and SGLang's names and shapes, no arithmetic;
- which tensors the writer empties after grouping: not the model's own, which it offloads next;
- the meta server: a pipe between both processes. Awex's is an HTTP server that is asked every 0.2 s
  and more; its waits and its calls of nvidia-smi for the log are left out, in Awex's favour. So is
  what it does for tied embeddings, which are sent twice.

The weights leave the GPU in the midst of writing them, as Awex has it; the time of that is counted
as offloading, not as transfer. Inference keeps its memory all the time. At the end both sides
compare the sums of what was sent and what arrived.
"""
import contextlib
import gc
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import sys
import time
import types

from peer_shapes import MODELS, inference_tensors, trainer_tensors

PATIENCE_S = 300


class PipeStore:
    """What Awex asks of its meta server, for one trainer and one inference process."""

    def __init__(self, pipe):
        self._pipe = pipe
        self._values = {}

    def put_object(self, key, value):
        self._pipe.send((key, value))

    def add_object_to_set(self, key, value):
        """Awex's sets tell ranks of each other; with one rank a role nobody waits for them."""

    def get_object(self, key, timeout=PATIENCE_S):
        while key not in self._values:
            if not self._pipe.poll(min(timeout, PATIENCE_S)):
                raise TimeoutError(f"the other process did not send '{key}' within {PATIENCE_S} s")
            try:
                name, value = self._pipe.recv()
            except EOFError:
                raise RuntimeError(f"the other process ended before it sent '{key}': its own error "
                                   "stands above") from None
            self._values[name] = value
        return self._values[key]

    def get_object_then_delete(self, key):
        self.get_object(key)
        self.delete_if_exists(key)

    def delete_if_exists(self, key):
        self._values.pop(key, None)


def stand_in(name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


def import_awex():
    """Awex's modules. What they import of Megatron is a type in annotations."""
    for name in ("megatron", "megatron.core", "megatron.core.transformer"):
        stand_in(name, __path__=[])
    stand_in("megatron.core.transformer.transformer_config", TransformerConfig=object)
    stand_in("awex.meta.meta_server", MetaServerClient=PipeStore)
    import awex.logging
    awex.logging.setLevel(awex.logging.LogLevel.WARNING)
    from awex.meta.weight_meta import ParameterMeta, ParameterReplicaMeta, ParameterShardMeta
    from awex.models.registry import get_infer_weights_converter, get_train_weights_converter
    from awex.reader import nccl_reader
    from awex.sharding.rank_info import RankInfo
    from awex.transfer.nccl_stream_batch import NcclColocateStreamBatchTransport
    from awex.transfer.transfer_plan import TransferPlanBuilder
    from awex.writer import nccl_writer
    for module in (nccl_reader, nccl_writer):
        module.print_current_gpu_status = lambda stage: None
    nccl_reader.get_gpu_status = lambda: ""
    return types.SimpleNamespace(
        Meta=ParameterMeta, Replica=ParameterReplicaMeta, Shard=ParameterShardMeta,
        RankInfo=RankInfo, Transport=NcclColocateStreamBatchTransport, Builder=TransferPlanBuilder,
        Writer=nccl_writer.NCCLWeightsWriter, Reader=nccl_reader.NCCLWorkerWeightsReader,
        train_converter=get_train_weights_converter, infer_converter=get_infer_weights_converter,
        writer_module=nccl_writer)


def spare_the_model(awex, engine):
    """Awex's writer empties every tensor that it has grouped, also those that are views of the
    model's weights, before it has the weights offloaded. Public adapters except the model's."""
    release = awex.writer_module.release_tensors
    awex.writer_module.release_tensors = lambda tensors: release(
        [tensor for tensor in tensors if not engine.holds(tensor)])


def rank_info(awex, is_infer):
    ranks = {name: 0 for name in ("tp_rank", "pp_rank", "dp_rank", "ep_rank", "ep_tp_rank",
                                  "attn_tp_rank", "attn_dp_rank", "global_rank", "local_rank",
                                  "engine_rank")}
    sizes = {name: 1 for name in ("tp_size", "pp_size", "dp_size", "ep_size", "ep_tp_size",
                                  "attn_tp_size", "world_size")}
    return awex.RankInfo(**ranks, **sizes, is_infer=is_infer)


def metadata(awex, parameters):
    """One rank's parameters in Awex's words."""
    result = []
    for name, tensor in parameters.items():
        shape, count = tuple(tensor.shape), tensor.numel()
        shard = awex.Shard(tp_rank=0, attn_tp_rank=0, pp_rank=0, ep_rank=0, ep_tp_rank=0,
                           global_rank=0, world_size=1, engine_rank=0, name=name, shape=shape,
                           numel=count, dtype=tensor.dtype, global_offset=(0,) * len(shape))
        result.append(awex.Meta(name=name, global_numel=count, global_shape=shape,
                                dtype=tensor.dtype, shards=[shard],
                                replicas=[awex.Replica(shards=[shard])]))
    return result


def module_of(named_tensors):
    """A module whose parameters have these dotted names."""
    import torch
    root = torch.nn.Module()
    for name, tensor in named_tensors:
        *path, leaf = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, torch.nn.Module())
            at = getattr(at, part)
        at.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    return root


class Device:
    """The device and its clock."""

    def __init__(self, kind):
        import torch
        self.kind = kind
        self.torch = torch

    def synchronize(self):
        if self.kind == "cuda":
            self.torch.cuda.synchronize()

    def give_back_cached(self):
        self.synchronize()
        gc.collect()
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()

    def reset_peak(self):
        if self.kind == "cuda":
            self.torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self):
        return self.torch.cuda.max_memory_reserved() if self.kind == "cuda" else None

    @contextlib.contextmanager
    def timed(self, into, name):
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        into[name] = time.perf_counter() - start


class TrainEngine:
    """What Awex asks of a training engine: weights and optimizer that leave the GPU and return."""

    def __init__(self, device, model):
        torch = device.torch
        self.device = device
        self.times = {}
        shapes = list(trainer_tensors(model))
        sizes = [torch.Size(shape).numel() for _, shape in shapes]
        generator = torch.Generator(device.kind).manual_seed(1)
        self._buffer = torch.randn(sum(sizes), dtype=torch.bfloat16, device=device.kind,
                                   generator=generator)
        self._storage_bytes = self._buffer.untyped_storage().nbytes()
        self._host = None
        views = torch.split(self._buffer, sizes)
        self.model = module_of((name, view.view(shape))
                               for (name, shape), view in zip(shapes, views, strict=True))
        self._states = [torch.zeros(shape, device=device.kind)
                        for _, shape in shapes for _ in range(3)]
        device.synchronize()

    @property
    def bytes(self):
        return {"weights": self._storage_bytes, "optimizer": sum(s.nbytes for s in self._states)}

    def holds(self, tensor):
        return tensor.untyped_storage().data_ptr() == self._buffer.untyped_storage().data_ptr()

    def release_grad_memory(self):
        """There are no gradients between two steps."""

    def release_memory_occupation(self, tags):
        tags = [tags] if isinstance(tags, str) else tags
        for tag in tags:
            with self.device.timed(self.times, f"offload {tag}"):
                {"weights": self._offload_weights, "optimizer": self._offload_optimizer}[tag]()
                self.device.give_back_cached()

    def resume_memory_occupation(self, tags):
        for tag in tags:
            with self.device.timed(self.times, f"resume {tag}"):
                {"weights": self._resume_weights, "optimizer": self._resume_optimizer}[tag]()

    def _offload_weights(self):
        if self._host is None:
            self._host = self.device.torch.zeros(self._buffer.shape, dtype=self._buffer.dtype,
                                                 pin_memory=self.device.kind == "cuda")
        self._host.copy_(self._buffer)
        self._buffer.untyped_storage().resize_(0)

    def _resume_weights(self):
        self._buffer.untyped_storage().resize_(self._storage_bytes)
        self._buffer.copy_(self._host, non_blocking=True)

    def _offload_optimizer(self):
        for index, state in enumerate(self._states):
            self._states[index] = state.to("cpu", non_blocking=True)

    def _resume_optimizer(self):
        for index, state in enumerate(self._states):
            self._states[index] = state.to(self.device.kind, non_blocking=True)


def conversion_setting(model):
    hf_config = types.SimpleNamespace(**model.hf_config(), tie_word_embeddings=False)
    tf_config = types.SimpleNamespace(
        hidden_size=model.hidden, num_attention_heads=model.heads, num_query_groups=model.kv_heads,
        kv_channels=model.head_dim, num_layers=model.layers)
    return hf_config, tf_config


def make_writer(awex, engine, model, store):
    """Awex's writer, without what only an initialisation through a meta server gives."""
    hf_config, tf_config = conversion_setting(model)
    writer = object.__new__(awex.Writer)
    info = rank_info(awex, is_infer=False)
    vars(writer).update(
        train_engine=engine, model=[engine.model], hf_config=hf_config, rank_info=info,
        meta_server_client=store, timeout=PATIENCE_S, transfer_rank=1, enable_mem_debug=False,
        ipc_backend=engine.device.kind, _history_write_weights_time={},
        weight_converter=awex.train_converter(
            "mcore", hf_config.architectures[0], hf_config, info,
            {"infer_atten_tp_size": 1, "router_dtype": "bf16", "device_backend": "cuda"},
            tf_config=tf_config))
    return writer


def make_reader(awex, device, model, store, training_meta):
    """Awex's reader over a model in SGLang's fused layout, without an engine around it."""
    import torch
    hf_config, _ = conversion_setting(model)
    info = rank_info(awex, is_infer=True)
    held = module_of((name, torch.zeros(shape, dtype=torch.bfloat16, device=device.kind))
                     for name, shape in inference_tensors(model))
    converter = awex.infer_converter(
        "sglang", hf_config.architectures[0], hf_config=hf_config, rank_info=info,
        infer_engine_config=types.SimpleNamespace(tp_size=1, ep_size=1, device_backend="cuda"))
    parameters = {hf_name: view for name, tensor in held.named_parameters()
                  for hf_name, view in converter.convert_param(name, tensor)}
    builder = awex.Builder(1, 1, 1)
    held_meta = metadata(awex, parameters)
    reader = object.__new__(awex.Reader)
    vars(reader).update(
        model=held, parameters=parameters, rank_info=info, meta_server_client=store,
        timeout=PATIENCE_S, enable_colocate_mode=True, ipc_backend="cuda", transfer_rank=0,
        rank_coordinate="0-0-0", infer_world_size=1, send_ranks_sample=[1],
        transfer_plan=builder.build_local_transfer_plan(held_meta, training_meta, 0),
        send_transfer_plan=builder.build_local_transfer_plan(held_meta, training_meta, 1),
        train_to_infer_device_mapping={1: 0}, infer_to_train_device_mapping={0: 1},
        weights_update_group=None, _history_update_weights_time={},
        colocate_transport=awex.Transport(0, 1))
    return reader


def sums(parameters):
    """Of each tensor's bits, so that order in the tensor does not matter and NaN would."""
    import torch
    return {name: int(tensor.contiguous().view(torch.int16).sum(dtype=torch.int64))
            for name, tensor in sorted(parameters.items())}


def join_group_of_one(device):
    """Awex ends an update with a barrier of the inference ranks."""
    import torch.distributed as dist
    with contextlib.redirect_stdout(sys.stderr):
        dist.init_process_group("nccl" if device.kind == "cuda" else "gloo",
                                store=dist.HashStore(), rank=0, world_size=1)
        if device.kind == "cuda":
            dist.barrier(device_ids=[0])


def time_applying(awex_transport, device, times):
    """Times the transport's part of each update."""
    apply = awex_transport.update_weights_in_colocate_mode

    def timed(*arguments, **options):
        with device.timed(times, "apply"):
            return apply(*arguments, **options)
    awex_transport.update_weights_in_colocate_mode = timed


def infer(pipe, model_name, cycles, kind):
    os.dup2(sys.stderr.fileno(), 1)  # Awex logs to stdout.
    awex = import_awex()
    device = Device(kind)
    store = PipeStore(pipe)
    join_group_of_one(device)
    reader = make_reader(awex, device, MODELS[model_name], store,
                         store.get_object("training_params_meta"))
    times = {}
    time_applying(reader.colocate_transport, device, times)
    store.put_object("ready", True)
    for step in range(cycles):
        reader._update_weights_in_colocate_mode(step)
        store.put_object(f"apply {step}", times.pop("apply"))
    store.put_object("sums", sums(reader.parameters))
    store.get_object("finished")


def one_cycle(writer, engine, store, step):
    """Times of one train -> rollout -> train."""
    times = engine.times = {}
    device = engine.device
    engine.release_memory_occupation(["optimizer"])
    device.reset_peak()
    with device.timed(times, "write"):
        writer._write_weights_in_colocate_mode(step)
    peak = device.peak_bytes()
    times["transfer"] = times.pop("write") - times["offload weights"]
    times["apply"] = store.get_object(f"apply {step}")
    engine.resume_memory_occupation(["weights"])
    engine.resume_memory_occupation(["optimizer"])
    return {"seconds": times, "trainer_peak_bytes": peak}


def compare(store, expected):
    arrived = store.get_object("sums")
    wrong = [name for name, value in expected.items() if arrived.get(name) != value]
    if wrong or len(arrived) != len(expected):
        sys.exit(f"error: inference holds other bytes than were sent: {len(wrong)} of "
                 f"{len(expected)} tensors, first {wrong[:1]}")


def train(pipe, model_name, cycles, kind):
    awex = import_awex()
    device = Device(kind)
    store = PipeStore(pipe)
    model = MODELS[model_name]
    engine = TrainEngine(device, model)
    spare_the_model(awex, engine)
    writer = make_writer(awex, engine, model, store)
    converted = writer.convert_parameters()
    store.put_object("training_params_meta", metadata(awex, converted))
    expected = sums(converted)
    del converted
    device.give_back_cached()
    store.get_object("ready")
    result = [one_cycle(writer, engine, store, step) for step in range(cycles)]
    compare(store, expected)
    store.put_object("finished", True)
    return {"cycles": result, "bytes": engine.bytes}


def main():
    out, model_name, warm_cycles = sys.argv[1:4]
    kind = sys.argv[5] if sys.argv[4:5] == ["--device"] else "cuda"
    os.environ["AWEX_DEVICE_TYPE"] = kind
    os.environ.setdefault("AWEX_MASTER_ADDR", "127.0.0.1")  # Else it asks the network for its own.
    cycles = 1 + int(warm_cycles)
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    inference = spawn.Process(target=infer, args=(theirs, model_name, cycles, kind), daemon=True)
    inference.start()
    theirs.close()  # So that the death of the other process ends every wait.
    os.dup2(sys.stderr.fileno(), 1)
    report = train(mine, model_name, cycles, kind)
    inference.join(PATIENCE_S)
    if inference.exitcode != 0:
        sys.exit(f"error: the inference process ended with {inference.exitcode}")
    report["version"] = importlib.metadata.version("awex")
    pathlib.Path(out).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
