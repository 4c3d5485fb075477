#!/usr/bin/env python3
"""Compares the layout `vllm:…` with vLLM itself, on the CPU.

For every model and setting, vLLM builds the model on RANKS processes and loads, by its own
load_weights, checkpoints whose elements tell where they come from (MarkedCheckpoint). Names, shapes,
dtypes and every element that a rank then holds must be what the layout says, and still be so after
vLLM's post-load step.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what vLLM holds as the tables that engine_tables_test reads.
"""
import json
import pathlib
import re
import sys
import tempfile

import torch
import torch.multiprocessing

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
import engine
import engine_comparison as comparison

RANKS = 4
DENSE = ["tp=1", "tp=2", "tp=4", "tp=2,pp=2", "tp=1,pp=4", "tp=2,dp=2"]
MOE = [setting for setting in DENSE if setting != "tp=1,pp=4"] + [  # a stage without experts is refused
    "tp=4,ep=on", "tp=2,ep=on", "tp=2,dp=2,ep=on", "tp=1,dp=4,ep=on", "tp=1,dp=4",
               "tp=2,pp=2,ep=on"]
SETTINGS = {"llama": DENSE, "llama-tied": DENSE, "qwen2": DENSE, "qwen3": DENSE,
            "qwen3-moe": MOE, "qwen3-moe-tied": ["tp=2", "tp=2,pp=2"],
            "deepseek": [*MOE, "tp=1,pp=2,dp=2,ep=on"],
            "deepseek-one-q": MOE, "glm": MOE}
# vLLM's kernels for experts on x86 pack them after loading; those for GPUs are not asked here.
PACKED = re.compile(r"experts\.w(13|2)_weight$")
DERIVED = re.compile(r"\.(W_UV|W_UK_T)$")  # Of kv_b_proj: copies_of_kv_b looks for those that are no views.


def model_of(folder, name):
    """A small model that vLLM's attention takes: heads of 32, bf16, experts that are not so many that
    every number of ranks divides them."""
    model = json.loads((folder / f"small-{name.removesuffix('-tied')}.json").read_text())
    model |= {"torch_dtype": "bfloat16", "hidden_size": 128, "intermediate_size": 64,
              "tie_word_embeddings": name.endswith("-tied")}
    if "kv_lora_rank" in model:
        model |= {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
                  "v_head_dim": 32, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        if model.get("q_lora_rank"):
            model["q_lora_rank"] = 48
    else:
        model["head_dim"] = 32
    if "moe_intermediate_size" in model:
        model["moe_intermediate_size"] = 32
    return model


def work_one(case, rank, tool, folder, number):
    _, config, setting = case
    spec = f"vllm:{setting}"
    tensors, layout = comparison.inference_pieces(tool, config / "config.json", spec, RANKS)
    settings = engine.config_of(config, spec, rank)
    engine.start_groups(settings, rank, RANKS, folder / "store")
    model = engine.build(settings)
    checkpoint = comparison.MarkedCheckpoint(tensors)
    loaded = checkpoint.load(lambda weights: engine.load(settings, model, weights),
                             lambda: engine.weights_of(model))
    wrong = checkpoint.difference("vLLM", loaded, layout[rank])
    before = {key: value.clone() for key, value in engine.weights_of(model).items()}
    engine.after_loading(settings, model)
    after = engine.weights_of(model)
    changed = [key for key, value in before.items()
               if not PACKED.search(key) and (key not in after or not torch.equal(after[key], value))]
    changed += [key for key in after if key not in before and not DERIVED.search(key)]
    torch.save({"wrong": wrong, "changed": changed, "copies": engine.copies_of_kv_b(model),
                "shapes": {key: tuple(value.shape) for key, value in before.items()}},
               folder / f"{number}-{rank}.pt")
    engine.stop_groups()


def work(rank, cases, tool, folder):
    torch.set_num_threads(1)
    engine.keep_weights_plain()
    for number, case in enumerate(cases):
        try:
            work_one(case, rank, tool, folder, number)
        except Exception as error:  # the other cases tell more
            torch.save({"wrong": f"{type(error).__name__}: {error}"[:300], "changed": [], "copies": [],
                        "shapes": {}}, folder / f"{number}-{rank}.pt")
            engine.stop_groups()
        torch.distributed.barrier()


def write_tables(folder, models, tables):
    version = ".".join(engine.version().split(".")[:2])
    for name, parts in tables.items():
        (folder / "models" / f"vllm-{name}.json").write_text(json.dumps(models[name], indent=2) + "\n")
        comparison.write_table(folder / f"vllm-{version}_{name}.txt", "scripts/test-vllm.sh",
                               f"vLLM {engine.version()}", f"vllm-{name}", parts)


def main():
    arguments = comparison.parse_arguments(__doc__, SETTINGS)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models, cases, tables = {}, [], {}
        for model, settings in SETTINGS.items():
            if arguments.only not in (None, model):
                continue
            models[model] = model_of(arguments.models, model)
            (folder / model).mkdir()
            (folder / model / "config.json").write_text(json.dumps(models[model]))
            cases += [(model, folder / model, setting) for setting in settings]
        torch.multiprocessing.spawn(work, (cases, arguments.layout_tool, folder), nprocs=RANKS)
        for number, (model, _, setting) in enumerate(cases):
            results = [torch.load(folder / f"{number}-{rank}.pt") for rank in range(RANKS)]
            wrong = [f"rank {rank}: {result['wrong']}" for rank, result in enumerate(results)
                     if result["wrong"]]
            changed = sorted({key for result in results for key in result["changed"]})
            copies = sorted({key for result in results for key in result["copies"]})
            text = wrong[0] if wrong else f"ok, {sum(len(r['shapes']) for r in results)} weights"
            text += f"; changed after loading: {changed[:3]}" if changed else ""
            text += f"; copies of kv_b_proj: {copies[:2]}" if copies else ""
            print(f"{model} vllm:{setting}: {text}", flush=True)
            failed += bool(wrong or changed or copies)
            if not wrong:
                tables.setdefault(model, []).append(
                    comparison.table(f"vllm:{setting}", [result["shapes"] for result in results]))
        if arguments.write:
            write_tables(arguments.write, models, tables)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
