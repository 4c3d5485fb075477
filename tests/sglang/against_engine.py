#!/usr/bin/env python3
"""Compares the layout `sglang:…` with SGLang itself, on the CPU.

For every model and setting, SGLang builds the model on processes, one a rank, and loads, by its own
load_weights, checkpoints whose elements tell where they come from (support/engine_comparison.py).
Names, shapes, dtypes and every element that a rank then holds must be what the layout says, and
still be so after SGLang's post-load step.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what SGLang holds as the tables that engine_tables_test reads.
"""
import json
import pathlib
import re
import sys
import tempfile

import torch
import torch.multiprocessing

import engine

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))
import engine_comparison as comparison

RANKS = 4  # As many whole engines as these are enough for.
DENSE = ["tp=1", "tp=2", "tp=4", "tp=1,pp=2", "tp=2,pp=2", "tp=1,pp=4"]
ATTENTION = ["tp=2,attn_dp=2", "tp=4,attn_dp=2", "tp=4,attn_dp=4", "tp=2,pp=2,attn_dp=2"]
HEAD = ["tp=4,attn_dp=2,dp_lm_head=on", "tp=2,pp=2,attn_dp=2,dp_lm_head=on"]
EXPERTS = ["tp=2,ep=2", "tp=4,ep=2", "tp=4,ep=4", "tp=2,pp=2,ep=2", "tp=4,attn_dp=4,ep=4",
           "tp=4,attn_dp=2,ep=2"]
SHARED = ["tp=2,fuse_shared=off", "tp=4,ep=4,shared_experts=replicated", "tp=4,attn_dp=2,dense_mlp=replicated"]
TIED = ["tp=2", "tp=2,pp=2", "tp=4,attn_dp=2", "tp=2,pp=2,attn_dp=2"]
# Options of which some classes know nothing.
DENSE_MLP = ["tp=4,attn_dp=2,dense_mlp=replicated"]
FP8 = [f"{setting},keeps_fp8=on,dtype=fp8,block=128" for setting in
       ("tp=1", "tp=2", "tp=2,pp=2", "tp=4,attn_dp=2")]
SETTINGS = {
    "llama": DENSE + ATTENTION + HEAD + DENSE_MLP, "llama-tied": TIED + HEAD,
    "qwen2": DENSE + ATTENTION + HEAD + DENSE_MLP, "qwen2-tied": TIED + HEAD,
    "qwen2-fp8": FP8, "qwen2-wide": ["tp=2"],
    "qwen3": DENSE + ATTENTION + HEAD + DENSE_MLP, "qwen3-tied": TIED + HEAD, "qwen3-fp8": FP8,
    "qwen3-thirds": ["tp=3", "tp=3,attn_dp=3", "tp=3,attn_dp=3,dp_lm_head=on"],
    "qwen3-moe": DENSE + ATTENTION + HEAD + EXPERTS, "qwen3-moe-tied": TIED + HEAD,
    "qwen3-moe-few": ["tp=2", "tp=4"], "glm-few": ["tp=4,ep=2"], "deepseek-few": ["tp=4,ep=2"],
    "qwen3-moe-fp8": [*FP8, "tp=2,ep=2,keeps_fp8=on,dtype=fp8,block=128"],
    "glm": DENSE + ATTENTION + HEAD + EXPERTS + SHARED, "glm-tied": TIED + HEAD,
    "glm-two-shared": ["tp=2", "tp=2,ep=2"], "glm-fp8": FP8,
    "deepseek": [*DENSE, *ATTENTION, *HEAD, *EXPERTS, *SHARED, "tp=2,attn_dp=2,embed=replicated",
                 "tp=2,fuse_shared=on"],
    "deepseek-tied": TIED + HEAD, "deepseek-two-shared": ["tp=2"],
    "deepseek-one-q": DENSE + ATTENTION + HEAD + EXPERTS,
    "deepseek-256": ["tp=1", "tp=4", "tp=2,ep=2", "tp=2,pp=2", "tp=4,attn_dp=2", "tp=2,fuse_shared=off"],
    "deepseek-fp8": FP8,
}
FP8_SIZES = {  # Whole blocks of 128 at tp=4.
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 128, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 512, "q_lora_rank": 128,
    "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128}
# What SGLang fails to load, and what it says.
FAILS = {("glm-two-shared", "tp=2"): "AssertionError",
         **{(f"{name}-few", setting): "greater than the number of experts" for name, setting in (
             ("qwen3-moe", "tp=4"), ("glm", "tp=4,ep=2"), ("deepseek", "tp=4,ep=2"))}}
# Of these, what the layout refuses, and what it says.
REFUSED = "does not start with tp=4 for a model of 2 experts"
KINDS = ("-tied", "-wide", "-few", "-thirds", "-fp8", "-two-shared", "-256")


def model_of(folder, name):
    base, kind = next(((name.removesuffix(kind), kind) for kind in KINDS if name.endswith(kind)), (name, ""))
    model = json.loads((folder / f"small-{base}.json").read_text())
    model |= {"torch_dtype": "bfloat16", "tie_word_embeddings": kind == "-tied"}
    if kind == "-thirds":  # 301 tokens, padded to 64, divide by no 3
        model |= {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 48}
    if "n_shared_experts" in model:
        model["n_shared_experts"] = 2 if kind == "-two-shared" else 1
    if "kv_lora_rank" in model:
        model |= {"moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    if "mlp_only_layers" in model:
        model["mlp_only_layers"] = []
    if kind == "-wide":
        model["head_dim"] = 12
    if kind == "-few":
        model |= {key: 2 for key in ("num_experts", "n_routed_experts", "num_experts_per_tok") if key in model}
    if kind == "-256":
        model |= {"n_routed_experts": 256, "moe_intermediate_size": 16, "num_hidden_layers": 3}
    if kind == "-fp8":
        model |= {key: value for key, value in FP8_SIZES.items() if key in model}
    return model


def config_of(model, name):
    """config.json as SGLang reads it. It ignores dense layers of Qwen3-MoE, which the layout refuses;
    fp8 is an option of the layout."""
    if "mlp_only_layers" in model:
        model = model | {"mlp_only_layers": [1], "decoder_sparse_step": 2}
    if not name.endswith("-fp8"):
        return model
    return model | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                                            "activation_scheme": "dynamic",
                                            "weight_block_size": [128, 128]}}


def with_head(weights):
    """Some checkpoints of tied models store the head as well. SGLang's classes that have a head of
    their own read it from there alone."""
    for name, value in weights:
        yield name, value
        if name == "model.embed_tokens.weight":
            yield "lm_head.weight", value


def latent_step(model):
    """What is wrong with the copies of kv_b_proj that latent attention computes with: the post-load
    step alone must make them anew, and change nothing else."""
    copies = engine.copies_of_kv_b(model)
    stale = [(copy.keys.clone(), copy.values.clone()) for copy in copies]
    for copy in copies:
        copy.weight.copy_(torch.arange(copy.weight.numel()).view(copy.weight.shape) % 251)
    before = {name: value.clone() for name, value in engine.weights_of(model).items()}
    wrong = [] if copies else ["no latent attention"]
    wrong += ["w_kc, w_vc are of kv_b_proj before the step" for copy in copies if copy.is_right()]
    engine.after_loading(model)
    after = engine.copies_of_kv_b(model)
    wrong += ["w_kc, w_vc are not of kv_b_proj" for copy in after if not copy.is_right()]
    wrong += ["the step changed nothing" for copy, old in zip(after, stale)
              if torch.equal(copy.keys, old[0]) or torch.equal(copy.values, old[1])]
    wrong += [f"{name} changed" for name, value in engine.weights_of(model).items()
              if not torch.equal(value, before[name])]
    return wrong


def ranks_of(setting):
    one = engine.ranks_of(f"sglang:{setting}")
    return RANKS // one * one


def work_one(case, rank, tool, folder):
    name, model_folder, setting = case
    spec = f"sglang:{setting}"
    instance, place = divmod(rank, engine.ranks_of(spec))
    store = folder / f"{name}:{setting}:{instance}"
    model = engine.build(engine.start(model_folder / "engine", spec, place, store))
    tensors, layout = comparison.inference_pieces(tool, model_folder / "config.json", spec,
                                                  ranks_of(setting))
    checkpoint = comparison.MarkedCheckpoint(tensors)
    stored = with_head if name.endswith("-tied") else iter
    loaded = checkpoint.load(lambda weights: engine.load(model, stored(weights)),
                             lambda: engine.weights_of(model))
    wrong = checkpoint.difference("SGLang", loaded, layout[rank])
    before = {key: value.clone() for key, value in engine.weights_of(model).items()}
    engine.after_loading(model)
    after = engine.weights_of(model)
    changed = [key for key in before.keys() | after.keys()
               if key not in before or key not in after or not torch.equal(after[key], before[key])]
    latent = latent_step(model) if "deepseek" in name and "fp8" not in name else []
    return {"wrong": wrong, "changed": changed + latent,
            "weights": {key: (comparison.DTYPES[value.dtype], tuple(value.shape))
                        for key, value in before.items()}}


def refused(case, tool):
    """Whether the layout refuses what SGLang does not start with."""
    name, model_folder, setting = case
    if not name.endswith("-few"):
        return True
    try:
        comparison.inference_pieces(tool, model_folder / "config.json", f"sglang:{setting}", RANKS)
    except RuntimeError as error:
        return REFUSED in str(error)
    return False


def work(rank, cases, tool, folder):
    for number, case in enumerate(cases):
        if rank >= ranks_of(case[2]):
            continue
        try:
            result = work_one(case, rank, tool, folder)
        except Exception as error:  # the other cases tell more
            result = {"wrong": f"{type(error).__name__}: {error}"[:300], "changed": [], "weights": {}}
        torch.save(result, folder / f"{number}-{rank}.pt")
        engine.stop()


def as_lines(weights):
    """Layers that are alike share a line: "model.layers.{0-3}.…". The table says once that bf16 is
    usual."""
    alike = {}
    for name, held in weights.items():
        start, *rest = re.split(r"(?<=^model\.layers\.)(\d+)", name)
        alike.setdefault((start, *rest[1:], held), []).extend(int(layer) for layer in rest[:1])
    lines = []
    for (start, *rest, (dtype, shape)), layers in alike.items():
        spans = [f"{{{first}-{last}}}" for first, last in comparison.intervals(layers)] or [""]
        words = [*map(str, shape), *([dtype] if dtype != "BF16" else [])]
        lines += [" ".join([start + span + "".join(rest), *words]) for span in spans]
    return lines


def write_tables(folder, models, tables):
    for name, parts in tables.items():
        (folder / "models" / f"sglang-{name}.json").write_text(json.dumps(models[name], indent=2) + "\n")
        comparison.write_table(folder / f"sglang-{engine.version()}_{name}.txt", "scripts/test-sglang.sh",
                               f"SGLang {engine.version()}", f"sglang-{name}", ["dtype BF16\n", *parts])


def prepare(folder, models_folder, only):
    """(models: name to config, cases: (model, folder with its config.json, setting))."""
    models, cases = {}, []
    for name, settings in SETTINGS.items():
        if only not in (None, name):
            continue
        models[name] = model_of(models_folder, name)
        (folder / name / "engine").mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(models[name]))
        (folder / name / "engine" / "config.json").write_text(json.dumps(config_of(models[name], name)))
        cases += [(name, folder / name, setting) for setting in settings]
    return models, cases


def report(cases, tool, folder):
    """Prints a line a case. Returns the number of failures, and the tables of what SGLang holds."""
    failed, tables = 0, {}
    for number, case in enumerate(cases):
        name, _, setting = case
        results = [torch.load(folder / f"{number}-{rank}.pt") for rank in range(ranks_of(setting))]
        wrong = [f"rank {rank}: {result['wrong']}" for rank, result in enumerate(results)
                 if result["wrong"]]
        changed = sorted({key for result in results for key in result["changed"]})
        fails = FAILS.get((name, setting))
        if fails and refused(case, tool) and all(
                result["wrong"] and fails in result["wrong"] for result in results):
            print(f"{name} sglang:{setting}: ok, SGLang fails to load it", flush=True)
            continue
        wrong += [f"SGLang loads it, or the layout does not refuse it: {fails}"] if fails else []
        text = wrong[0] if wrong else f"ok, {sum(len(r['weights']) for r in results)} weights"
        text += f"; after loading: {changed[:3]}" if changed else ""
        print(f"{name} sglang:{setting}: {text}", flush=True)
        failed += bool(wrong or changed)
        if not wrong:
            tables.setdefault(name, []).append(
                comparison.table(f"sglang:{setting}", [result["weights"] for result in results], as_lines))
    return failed, tables


def main():
    arguments = comparison.parse_arguments(__doc__, SETTINGS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models, cases = prepare(folder, arguments.models, arguments.only)
        torch.multiprocessing.start_processes(work, (cases, arguments.layout_tool, folder),
                                              nprocs=RANKS, start_method="fork")
        failed, tables = report(cases, arguments.layout_tool, folder)
        if arguments.write:
            write_tables(arguments.write, models, tables)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
