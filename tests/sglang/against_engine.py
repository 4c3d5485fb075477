#!/usr/bin/env python3
"""Compares the layout `sglang:…` with SGLang itself, on the CPU.

For every model and setting, SGLang builds the model on processes, one a rank, and its own
load_weights loads checkpoints whose elements tell where they come from (engine_comparison.py).
Names, shapes, dtypes and every element that a rank then holds must be what the layout says, and
still be so after SGLang's post-load step.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what SGLang holds as the tables that engine_tables_test reads.
"""
import argparse
import json
import pathlib
import sys
import tempfile
import traceback

import torch
import torch.multiprocessing

import engine

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))
from engine_comparison import (DTYPES, Refused, difference, load_numbers, number_elements, pieces,
                               table)

RANKS = 4
DENSE = ["tp=1", "tp=2", "tp=4", "tp=1,pp=2", "tp=2,pp=2", "tp=1,pp=4"]
ATTENTION = ["tp=2,attn_dp=2", "tp=4,attn_dp=2", "tp=4,attn_dp=4", "tp=4,attn_dp=2,dp_lm_head=on",
             "tp=2,pp=2,attn_dp=2"]
MOE = [*DENSE, *ATTENTION, "tp=2,ep=2", "tp=4,ep=2", "tp=4,ep=4", "tp=2,pp=2,ep=2", "tp=4,attn_dp=4,ep=4",
       "tp=4,attn_dp=2,ep=2"]
TIED = ["tp=2", "tp=2,pp=2", "tp=4,attn_dp=2", "tp=4,attn_dp=2,dp_lm_head=on", "tp=2,pp=2,attn_dp=2"]
SHARED = ["tp=2,fuse_shared=off", "tp=4,ep=4,shared_experts=replicated", "tp=2,attn_dp=2,dense_mlp=replicated"]
SETTINGS = {
    "llama": DENSE + ATTENTION, "llama-tied": TIED,
    "qwen2": DENSE + ATTENTION, "qwen2-tied": TIED,
    "qwen3": DENSE + ATTENTION, "qwen3-tied": TIED,
    "qwen3-moe": MOE, "qwen3-moe-tied": TIED,
    "glm": MOE + SHARED, "glm-tied": TIED, "glm-two-shared": ["tp=2,fuse_shared=off", "tp=2,ep=2"],
    "deepseek": [*MOE, *SHARED, "tp=2,attn_dp=2,embed=replicated", "tp=2,fuse_shared=on"],
    "deepseek-tied": TIED, "deepseek-two-shared": ["tp=2"],
    "deepseek-one-q": MOE,
    "deepseek-256": ["tp=1", "tp=4", "tp=2,ep=2", "tp=2,pp=2", "tp=4,attn_dp=2", "tp=2,fuse_shared=off"],
}


def model_of(folder, name):
    base = "deepseek-one-q" if "one-q" in name else name.split("-tied")[0].split("-two")[0].split("-256")[0]
    model = json.loads((folder / f"small-{base}.json").read_text())
    model |= {"torch_dtype": "bfloat16", "tie_word_embeddings": name.endswith("-tied")}
    if "n_shared_experts" in model:
        model["n_shared_experts"] = 2 if name.endswith("-two-shared") else 1
    if "kv_lora_rank" in model:
        model |= {"moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    if name == "deepseek-256":
        model |= {"n_routed_experts": 256, "moe_intermediate_size": 16, "num_hidden_layers": 3}
    if "mlp_only_layers" in model:
        model["mlp_only_layers"] = []  # SGLang ignores them: every layer has experts
    return model


def latent_step(model):
    """What is wrong with the copies of kv_b_proj that latent attention computes with: the post-load
    step alone must make them anew, and from kv_b_proj alone."""
    wrong = []
    for weight, _, _, _, _ in engine.copies_of_kv_b(model):
        weight.add_(1)
    stale = [keys.clone() for _, keys, _, _, _ in engine.copies_of_kv_b(model)]
    before = {name: value.clone() for name, value in engine.weights_of(model).items()}
    engine.after_loading(model)
    for (weight, keys, values, key_width, value_width), old in zip(engine.copies_of_kv_b(model), stale):
        by_head = weight.unflatten(0, (-1, key_width + value_width))
        wrong += [] if torch.equal(keys, by_head[:, :key_width]) else ["w_kc is not of kv_b_proj"]
        wrong += [] if torch.equal(values, by_head[:, key_width:].mT) else ["w_vc is not of kv_b_proj"]
        wrong += ["w_kc is a view of kv_b_proj"] if torch.equal(keys, old) else []
    wrong += [f"{name} changed" for name, value in engine.weights_of(model).items()
              if not torch.equal(value, before[name])]
    return wrong


def work_one(case, rank, tool, folder):
    name, config, setting = case
    spec = f"sglang:{setting}"
    tensors, layouts = pieces(tool, config / "config.json", spec, RANKS)
    numbers = number_elements(tensors)
    instance, place = divmod(rank, engine.ranks_of(spec))
    store = folder / f"{name}:{setting}:{instance}"
    model = engine.build(engine.start(config, spec, place, store))
    totals = load_numbers(lambda: engine.weights_of(model),
                          lambda weights: engine.load(model, weights), tensors, numbers)
    before = {key: value.clone() for key, value in engine.weights_of(model).items()}
    held = {key: (totals[key], value.dtype, value.shape) for key, value in before.items()}
    wrong = difference("SGLang", held, layouts[rank], numbers)
    engine.after_loading(model)
    after = engine.weights_of(model)
    changed = [key for key in before.keys() | after.keys()
               if key not in before or key not in after or not torch.equal(after[key], before[key])]
    latent = latent_step(model) if "deepseek" in name else []
    return {"wrong": wrong, "changed": changed + latent,
            "weights": {key: (DTYPES[value.dtype], tuple(value.shape)) for key, value in before.items()}}


def work(rank, cases, tool, folder):
    for number, case in enumerate(cases):
        try:
            result = work_one(case, rank, tool, folder)
        except Exception as error:  # the other cases tell more
            traceback.print_exc(file=(folder / f"{number}-{rank}.log").open("w"))
            result = {"wrong": f"{type(error).__name__}: {error}"[:300], "changed": [], "weights": {}}
        torch.save(result, folder / f"{number}-{rank}.pt")
        engine.stop()


def write_tables(folder, models, tables):
    for name, parts in tables.items():
        (folder / "models" / f"sglang-{name}.json").write_text(json.dumps(models[name], indent=2) + "\n")
        text = (f"# Written by scripts/test-sglang.sh --write: what SGLang {engine.version()} itself "
                f"holds.\nmodel sglang-{name}\n\n")
        (folder / f"sglang-{engine.version()}_{name}.txt").write_text(text + "\n".join(parts))


def report(cases, folder):
    """Prints a line a case. Returns the number of failures, and the tables of what SGLang holds."""
    failed, tables = 0, {}
    for number, (model, _, setting) in enumerate(cases):
        results = [torch.load(folder / f"{number}-{rank}.pt") for rank in range(RANKS)]
        wrong = [f"rank {rank}: {result['wrong']}" for rank, result in enumerate(results)
                 if result["wrong"]]
        changed = sorted({key for result in results for key in result["changed"]})
        text = wrong[0] if wrong else f"ok, {sum(len(r['weights']) for r in results)} weights"
        text += f"; after loading: {changed[:3]}" if changed else ""
        print(f"{model} sglang:{setting}: {text}", flush=True)
        failed += bool(wrong or changed)
        if not wrong:
            tables.setdefault(model, []).append(
                table(f"sglang:{setting}", [result["weights"] for result in results]))
    return failed, tables


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layout-tool", required=True, type=pathlib.Path)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--only", choices=SETTINGS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models, cases = {}, []
        for model, settings in SETTINGS.items():
            if arguments.only not in (None, model):
                continue
            models[model] = model_of(arguments.models, model)
            (folder / model).mkdir()
            (folder / model / "config.json").write_text(json.dumps(models[model]))
            cases += [(model, folder / model, setting) for setting in settings]
        torch.multiprocessing.start_processes(work, (cases, arguments.layout_tool, folder),
                                              nprocs=RANKS, start_method="fork")
        failed, tables = report(cases, folder)
        if arguments.write:
            write_tables(arguments.write, models, tables)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
