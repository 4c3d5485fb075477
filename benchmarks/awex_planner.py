#!/usr/bin/env python3
"""Awex's planner and this one on the same settings: time of one GPU's plan, bytes from the own GPU.

usage: awex_planner.py BUILD_DIR [SETTING ...]

Needs the public package awex (pip install --no-deps awex; measured with 0.9.0) and the targets
awex-colocate and plan_scaling in BUILD_DIR. Awex's own classes make the metadata of replicas, the
plans and the rounds; from here come the names and shapes of what each rank holds. They need PyTorch
only for its dtypes and a decorator, so where PyTorch is missing a stand-in with these is enough.

A GPU's reader in Awex's colocated mode computes two plans, what its inference rank receives and
what its trainer sends; both are timed, after the metadata of all ranks were put together. Ours is
the same for one GPU, from the layouts on. Times are of the processor, the best of several runs.

Where there are more tensor parallel ranks than key and value heads, Awex's metadata knows no
repeated heads: they are given as split evenly, which makes Awex's ranks a little smaller than ours.
"""
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import time
import types

RUNS = 3
SCALING_COLUMNS = ["ranks", "tensors", "kinds", "catalogue", "layouts", "shards", "routes", "pieces",
                   "best", "median", "own_pieces", "memory", "cluster", "all_pieces", "imbalance"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A Qwen3-MoE model as published: all layers have experts, and nothing is tied."""
    preset: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    experts: int
    moe_intermediate: int
    head_dim: int = 128
    vocab: int = 151936


@dataclasses.dataclass(frozen=True)
class Setting:
    model: Model
    gpus: int
    trainer: dict
    inference: dict
    per_node: int = 8

    @property
    def stage_ranks(self):
        return self.gpus // self.trainer["pp"]

    def stage_layers(self, stage):
        """Half-open; the first and last stages' layers are given, or all stages are even."""
        pp = self.trainer["pp"]
        ends = self.trainer.get("first", self.model.layers // pp)
        middle = (self.model.layers - 2 * ends) // max(1, pp - 2)
        sizes = [ends] + [middle] * (pp - 2) + [ends]
        assert pp > 1 and sum(sizes) == self.model.layers, sizes
        return range(sum(sizes[:stage]), sum(sizes[:stage + 1]))

    def spec(self, role):
        engine, options = {"trainer": ("megatron", {**self.trainer, "etp": 1}),
                           "inference": ("sglang", self.inference)}[role]
        return engine + ":" + ",".join(f"{key}={value}" for key, value in options.items())


QWEN3_235B = Model("qwen3-235b-a22b", 94, 4096, 64, 4, 128, 1536)
QWEN3_30B = Model("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768)
SETTINGS = {
    "235b-64": Setting(QWEN3_235B, 64, {"tp": 4, "pp": 4, "first": 23, "last": 23, "ep": 16},
                       {"tp": 8, "ep": 8}),
    "30b-8": Setting(QWEN3_30B, 8, {"tp": 2, "pp": 2, "ep": 4}, {"tp": 4, "ep": 4}),
    "30b-6": Setting(QWEN3_30B, 6, {"tp": 2, "pp": 3, "ep": 2}, {"tp": 2, "ep": 2}),
    "30b-12": Setting(QWEN3_30B, 12, {"tp": 2, "pp": 3, "ep": 2}, {"tp": 4, "ep": 4}),
}


def stand_in_torch():
    """What Awex's planner asks of PyTorch: dtypes with a size, a decorator, names in annotations."""
    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.dtype = type("dtype", (), {"__init__": lambda self, size: setattr(self, "itemsize", size)})
    torch.bfloat16 = torch.dtype(2)
    torch.Tensor = type("Tensor", (), {})
    torch.no_grad = lambda: lambda function: function
    torch.distributed = types.ModuleType("torch.distributed")
    torch.distributed.P2POp = torch.distributed.Work = type("Unused", (), {})
    sys.modules.update({"torch": torch, "torch.distributed": torch.distributed})


def import_awex():
    """Awex's planner alone: its package would import all engines."""
    os.environ.setdefault("AWEX_DEVICE_TYPE", "cpu")
    if importlib.util.find_spec("torch") is None:
        stand_in_torch()
    found = importlib.util.find_spec("awex")
    if found is None:
        sys.exit("error: the package awex is not installed: pip install --no-deps awex")
    package = types.ModuleType("awex")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["awex"] = package
    from awex.meta.meta_resolver import ParamMetaResolver
    from awex.sharding.param_sharding import ShardingStrategy
    from awex.sharding.rank_info import RankInfo
    from awex.transfer.nccl_stream_batch import NcclColocateStreamBatchTransport
    from awex.transfer.transfer_plan import TransferPlanBuilder
    return types.SimpleNamespace(
        Resolver=ParamMetaResolver, Strategy=ShardingStrategy, RankInfo=RankInfo,
        Transport=NcclColocateStreamBatchTransport, Builder=TransferPlanBuilder)


def parameters(model, layers, tp, experts, is_first, is_last):
    """(name, shape) of what a rank holds, under Hugging Face's names as Awex's converters write."""
    q_rows, kv_rows = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if is_first:
        yield "model.embed_tokens.weight", (model.vocab // tp, model.hidden)
    for layer in layers:
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (model.hidden,)
        yield at + "self_attn.q_proj.weight", (q_rows // tp, model.hidden)
        yield at + "self_attn.k_proj.weight", (kv_rows // tp, model.hidden)
        yield at + "self_attn.v_proj.weight", (kv_rows // tp, model.hidden)
        yield at + "self_attn.o_proj.weight", (model.hidden, q_rows // tp)
        yield at + "self_attn.q_norm.weight", (model.head_dim,)
        yield at + "self_attn.k_norm.weight", (model.head_dim,)
        yield at + "post_attention_layernorm.weight", (model.hidden,)
        yield at + "mlp.gate.weight", (model.experts, model.hidden)
        for expert in experts:
            of = f"{at}mlp.experts.{expert}."
            yield of + "gate_proj.weight", (model.moe_intermediate, model.hidden)
            yield of + "up_proj.weight", (model.moe_intermediate, model.hidden)
            yield of + "down_proj.weight", (model.hidden, model.moe_intermediate)
    if is_last:
        yield "model.norm.weight", (model.hidden,)
        yield "lm_head.weight", (model.vocab // tp, model.hidden)


def numel(shape):
    count = 1
    for size in shape:
        count *= size
    return count


class Role:
    """One role's metadata, put together by Awex's resolver from what each rank says it holds."""

    def __init__(self, awex, setting, is_trainer):
        self.awex, self.setting, self.is_trainer = awex, setting, is_trainer
        self.options = setting.trainer if is_trainer else setting.inference
        self.world = setting.gpus if is_trainer else setting.inference["tp"]
        self.raw = [self.rank(rank) for rank in range(self.world)]

    def info(self, rank):
        tp, ep, pp = (self.options.get(key, 1) for key in ("tp", "ep", "pp"))
        stage_ranks = self.world // pp
        in_stage = rank % stage_ranks
        return self.awex.RankInfo(
            tp_rank=in_stage % tp, tp_size=tp, pp_rank=rank // stage_ranks, pp_size=pp,
            dp_size=stage_ranks // tp, dp_rank=in_stage // tp, ep_rank=in_stage % ep, ep_size=ep,
            ep_tp_rank=0, ep_tp_size=1, attn_tp_rank=in_stage % tp, attn_tp_size=tp, attn_dp_rank=0,
            world_size=self.world, global_rank=rank, local_rank=rank % self.setting.per_node,
            engine_rank=0, is_infer=not self.is_trainer)

    def rank(self, rank):
        import torch
        info, model = self.info(rank), self.setting.model
        layers = self.setting.stage_layers(info.pp_rank) if self.is_trainer else range(model.layers)
        a_rank = model.experts // info.ep_size
        experts = range(info.ep_rank * a_rank, (info.ep_rank + 1) * a_rank)
        held = parameters(model, layers, info.tp_size, experts, info.pp_rank == 0,
                          info.pp_rank == info.pp_size - 1)
        return {"rank_info": info,
                "params_meta": [{"name": name, "shape": shape, "numel": numel(shape),
                                 "dtype": torch.bfloat16} for name, shape in held]}

    def meta(self):
        raw, info = self.raw, self.raw[0]["rank_info"]
        strategy = self.awex.Strategy(
            engine_name="mcore" if self.is_trainer else "sglang", enable_dp_attention=False,
            enable_dp_lm_head=False, moe_dense_tp_size=info.tp_size, tp_size=info.tp_size,
            ep_size=info.ep_size, ep_tp_size=1, rank_info=info)

        class Resolver(self.awex.Resolver):
            def get_model_arch_name(self):
                return "Qwen3MoeForCausalLM"

            def get_parameters_meta(self):
                return self._build_params_meta()

            def _get_params_raw_meta(self):
                return raw

            def _get_sharding_info(self, name, rank_info, param_meta):
                return strategy.get_sharding_strategy(
                    name, rank_info=rank_info, param_meta=param_meta)

        return Resolver({"num_hidden_layers": self.setting.model.layers}).get_parameters_meta()


def received_bytes(plan, dtype_bytes=2):
    """By the trainer's rank in Awex's numbering of both roles."""
    return {source: sum(numel(op.overlap_shape) for op in ops) * dtype_bytes
            for source, ops in plan.operations.items()}


def visited_pairs(awex, gpus):
    """(sender, receiver) between which Awex's rounds of its colocated mode receive anything."""
    visited = set()

    class Recorder(awex.Transport):
        def __init__(self):  # Its own would make CUDA streams.
            self.recorded = []

        def _execute_ops_concurrent(self, ops_dict, peer_ranks):
            if ops_dict == "receive":
                self.recorded.extend(peer_ranks)
            return 0

    for rank in range(gpus):
        recorder = Recorder()
        recorder.execute_recursive_partition_stream_transfer(
            rank, gpus, "send", "receive", None, "", 0)
        visited.update((sender, rank) for sender in recorder.recorded)
    return visited


def best_of(runs, work):
    """Milliseconds of the processor of the fastest run."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1e3)
    return min(times)


def measure_awex(awex, setting):
    """Everything of Awex for one setting. Its planner prints to stdout, which is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        inference = Role(awex, setting, is_trainer=False).meta()
        trainer = Role(awex, setting, is_trainer=True).meta()
        builder = awex.Builder(setting.gpus, setting.gpus, setting.gpus // setting.inference["tp"])

        def plan(rank):
            return builder.build_local_transfer_plan(inference, trainer, rank)

        gpu = setting.gpus // 2
        result = {"elements": sum(meta.global_numel for meta in trainer),
                  "receive_ms": best_of(RUNS, lambda: plan(gpu)),
                  "send_ms": best_of(RUNS, lambda: plan(gpu + setting.gpus)),
                  "local": 0, "all": 0, "unvisited": 0}
        pairs = visited_pairs(awex, setting.gpus)
        result["unvisited_pairs"] = setting.gpus * (setting.gpus - 1) - len(pairs)
        for receiver in range(setting.gpus):
            sources = received_bytes(plan(receiver))
            local = sources.get(receiver + setting.gpus, 0)
            result["local"] += local
            result["all"] += sum(sources.values())
            result["unvisited"] += sum(
                size for source, size in sources.items()
                if source - setting.gpus != receiver
                and (source - setting.gpus, receiver) not in pairs)
            if receiver == gpu:
                result["gpu_local"], result["gpu_all"] = local, sum(sources.values())
    return result


def measure_ours(build, setting):
    trainer, inference = setting.spec("trainer"), setting.spec("inference")
    gpu = setting.gpus // 2
    report = json.loads(subprocess.run(
        [build / "awex-colocate", "plan", "--model", "preset:" + setting.model.preset,
         "--gpus", str(setting.gpus), "--gpus-per-node", str(setting.per_node), "--trainer", trainer,
         "--inference", inference, "--list", str(gpu), "--json", "-"],
        check=True, capture_output=True, text=True).stdout)
    line = subprocess.run(
        [build / "benchmarks/plan_scaling", setting.model.preset, str(setting.gpus), trainer,
         inference, str(setting.per_node)],
        check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    scaling = dict(zip(SCALING_COLUMNS, map(float, line.split()), strict=True))
    received = [piece for piece in report["pieces"] if piece["to"] == gpu]
    plan = report["plan"]
    assert plan["remote_bytes"] == plan["remote_bytes_lower_bound"], plan
    return {"elements": report["model"]["elements"],
            "ms": scaling["best"],
            "cold_ms": scaling["best"] + scaling["catalogue"] + scaling["layouts"],
            "local": plan["local_bytes"], "all": plan["local_bytes"] + plan["remote_bytes"],
            "gpu_local": sum(p["bytes"] for p in received if p["from"] == gpu),
            "gpu_all": sum(p["bytes"] for p in received)}


def report(name, setting, theirs, ours):
    assert theirs["elements"] == ours["elements"], "not the same model"
    theirs_ms = theirs["receive_ms"] + theirs["send_ms"]
    gb = 1e9
    rows = [
        ("one GPU's plan (ms)", f"{theirs_ms:.0f}", f"{ours['ms']:.2f}",
         f"{theirs_ms / ours['ms']:.0f}x"),
        ("  of which what it receives (ms)", f"{theirs['receive_ms']:.0f}", "", ""),
        ("  from nothing: config to pieces (ms)", "", f"{ours['cold_ms']:.2f}",
         f"{theirs_ms / ours['cold_ms']:.0f}x"),
        (f"GPU {setting.gpus // 2} receives (GB)", f"{theirs['gpu_all'] / gb:.2f}",
         f"{ours['gpu_all'] / gb:.2f}", ""),
        ("  from its own trainer (GB)", f"{theirs['gpu_local'] / gb:.2f}",
         f"{ours['gpu_local'] / gb:.2f}", ""),
        ("all GPUs receive (GB)", f"{theirs['all'] / gb:.2f}", f"{ours['all'] / gb:.2f}", ""),
        ("  from their own trainers (GB)", f"{theirs['local'] / gb:.2f}",
         f"{ours['local'] / gb:.2f} (the most there is)", ""),
        ("pairs of GPUs that no round visits", str(theirs["unvisited_pairs"]), "", ""),
        ("  bytes planned between them (GB)", f"{theirs['unvisited'] / gb:.2f}", "", ""),
    ]
    print(f"\n{name}: {setting.model.preset}, {setting.gpus} GPUs, {setting.spec('trainer')}, "
          f"{setting.spec('inference')}")
    print(f"{'':42}{'Awex':>10}  {'awex-colocate':<28}ratio")
    for label, awex_value, our_value, ratio in rows:
        print(f"{label:42}{awex_value:>10}  {our_value:<28}{ratio}")


def main(words):
    if not words or not set(words[1:]) <= set(SETTINGS):
        print(f"usage: awex_planner.py BUILD_DIR [SETTING ...] of {', '.join(SETTINGS)}",
              file=sys.stderr)
        return 2
    awex = import_awex()
    for name in words[1:] or SETTINGS:
        setting = SETTINGS[name]
        report(name, setting, measure_awex(awex, setting),
               measure_ours(pathlib.Path(words[0]), setting))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
