#!/usr/bin/env python3
"""Compares the layout `vllm:…` with vLLM itself, on the CPU.

For every model and setting, vLLM builds the model on RANKS processes and loads, by its own
load_weights, checkpoints whose elements tell where they come from (MarkedCheckpoint). Names, shapes,
dtypes and every element that a rank then holds must be what the layout says, and still be so after
vLLM's post-load step. What vLLM derives from weights must be views of them, or a note of the layout
must ask for a step after updates, which then helps. What a layout refuses, vLLM must refuse or build
otherwise.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what vLLM holds as the tables that engine_tables_test reads.
"""
import json
import pathlib
import re
import sys
import tempfile

import safetensors.torch
import torch
import torch.multiprocessing

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
import engine
import engine_comparison as comparison

RANKS = 4
DENSE = ["tp=1", "tp=2", "tp=4", "tp=2,pp=2", "tp=1,pp=4", "tp=2,dp=2"]
MOE = ["tp=1", "tp=2", "tp=4", "tp=2,pp=2", "tp=2,dp=2", "tp=4,ep=on", "tp=2,ep=on", "tp=2,dp=2,ep=on",
       "tp=1,dp=4,ep=on", "tp=1,dp=4", "tp=2,pp=2,ep=on"]
FP8 = "deep_gemm=off,dtype=fp8,block=32"
FP8_EP = "ep=on,deep_gemm=off,moe_backend=triton,dtype=fp8,block=32"
SETTINGS = {
    "llama": [*DENSE, "tp=2,dtype=fp16"], "llama-tied": DENSE,
    "llama-tied-stored": ["tp=2,stored_head=on", "tp=2,pp=2,stored_head=on"],
    "qwen2": DENSE, "qwen3": DENSE, "qwen3-tied": ["tp=2", "tp=1,pp=4"],
    "qwen3-fp8": [f"tp=2,{FP8}", f"tp=2,pp=2,{FP8}"],
    "qwen3-moe": [*MOE, "tp=2,dtype=fp16"], "qwen3-moe-tied": ["tp=2", "tp=2,pp=2"],
    "qwen3-moe-tied-stored": ["tp=2,pp=2,stored_head=on"],
    "qwen3-moe-fp8": [f"tp=1,moe_backend=triton,{FP8}", f"tp=2,pp=2,{FP8_EP}"],
    "deepseek": [*MOE, "tp=1,pp=2,dp=2,ep=on", "tp=1,pp=4", "tp=2,dtype=fp16"],
    "deepseek-few": ["tp=4"], "deepseek-one-q": [*MOE[:4], "tp=1,pp=4", *MOE[4:]],
    "deepseek-fp8": [f"tp=2,moe_backend=triton,{FP8}", f"tp=2,dp=2,{FP8_EP}"],
    "deepseek-one-q-fp8": [f"tp=4,{FP8_EP}"],
    "glm": [*MOE, "tp=2,dtype=fp16"], "glm-air": ["tp=2,ep=on"],
    "glm-fp8": [f"tp=2,{FP8_EP}"],
    "mistral": DENSE, "mixtral": [*MOE, "tp=1,pp=4"], "qwen2-moe": MOE, "glm-lite": MOE,
}
# Of a parameter's name and shape, or of an error, that vLLM has where the layout refuses.
REFUSED = {
    "qwen2-wide-heads": {"tp=2": r"layers\.0\.self_attn\.o_proj\.weight 96 48$"},
    "qwen3-moe": {"tp=1,pp=4": "No Qwen3MoE layer found"},
    "qwen3-moe-few": {"tp=4": "Tensor parallel size 4 is greater than the number of experts 2"},
    "deepseek-tied": {"tp=2": "lm_head.weight", "tp=2,pp=2": "lm_head.weight"},
    "glm": {"tp=1,pp=4": "No Glm4MoE layer found"},
    "glm-tied": {"tp=2": "lm_head.weight", "tp=2,pp=2": "lm_head.weight"},
}
MODELS = sorted(SETTINGS.keys() | REFUSED.keys())
# vLLM's kernels for experts on x86 pack them after loading; those for GPUs are not asked here.
PACKED = re.compile(r"experts\.w(13|2)_weight$")
PASSING = re.compile(r"\.attn\.(q|k|v|prob)_scale$")  # Of an fp8 cache, gone after loading.
DERIVED = re.compile(r"\.(W_UV|W_UK_T)$")  # Of kv_b_proj.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def model_of(folder, name):
    """A small model that vLLM's attention takes: heads of 32, bf16, experts that are not so many that
    every number of ranks divides them. What follows a base's name changes it."""
    base = next(base for base in ("deepseek-one-q", "deepseek", "qwen3-moe", "qwen3", "qwen2-moe", "qwen2",
                                  "llama", "mistral", "mixtral", "glm-lite", "glm") if name.startswith(base))
    changes = name.removeprefix(base)
    model = json.loads((folder / f"small-{base}.json").read_text())
    model |= {"torch_dtype": "bfloat16", "hidden_size": 128, "intermediate_size": 64,
              "tie_word_embeddings": "-tied" in changes}
    if "kv_lora_rank" in model:
        model |= {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
                  "v_head_dim": 32, "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        if model.get("q_lora_rank"):
            model["q_lora_rank"] = 64 if "-fp8" in changes else 48
    else:
        model["head_dim"] = 32
    if "moe_intermediate_size" in model:
        model["moe_intermediate_size"] = 32
    if base == "qwen3" and "-tied" in changes:
        model |= {"hidden_size": 96, "num_hidden_layers": 6}
    if "-wide-heads" in changes:
        model["hidden_size"] = 96
    if "-few" in changes:
        experts = "num_experts" if "num_experts" in model else "n_routed_experts"
        model |= {experts: 2, "num_experts_per_tok": 2}
    if "-air" in changes:
        model["use_qk_norm"] = False
    if "-fp8" in changes:
        model |= {"intermediate_size": 128, "moe_intermediate_size": 64, "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [32, 32],
            "modules_to_not_convert": [f"model.layers.{layer}.mlp.gate" for layer in (0, 2, 3)]}}
        model = {key: value for key, value in model.items()
                 if key != "moe_intermediate_size" or "num_experts_per_tok" in model}
    return model


def write_model(folder, name, model):
    """What vLLM reads before it loads: config.json, and whether files store a head."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model))
    if name.endswith("-stored"):
        safetensors.torch.save_file({HEAD: torch.zeros(1)}, folder / "model.safetensors")


def start(case, rank, folder):
    """vLLM's configuration of this rank, and its groups."""
    _, config, setting = case
    settings = engine.config_of(config, f"vllm:{setting}", rank)
    engine.start_groups(settings, rank, RANKS, folder / "store")
    return settings


def with_head(weights):
    for name, value in weights:
        yield name, value
        if name == EMBEDDING:
            yield HEAD, value


def notes_answer(notes, model, settings):
    """What is wrong with what the layout says of copies, or nothing."""
    has_note = any("kv_b_proj" in note for note in notes)
    if engine.has_copies_of_kv_b(model) != has_note:
        return "vLLM copies kv_b_proj, or the layout has a note of it: one alone"
    if has_note and not engine.follow_update(settings, model):
        return "the step that the layout's note asks for does not bring the copies up to date"
    return None


def compare(case, rank, tool, folder):
    """(what is wrong, or nothing; the shapes that vLLM has)."""
    name, config, setting = case
    command = tool, config / "config.json", f"vllm:{setting}", RANKS
    tensors, layout = comparison.inference_pieces(*command)
    notes = comparison.inference_notes(*command)
    settings = start(case, rank, folder)
    model = engine.build(settings)
    checkpoint = comparison.MarkedCheckpoint(tensors)
    stored = with_head if name.endswith("-stored") else iter
    loaded = checkpoint.load(lambda weights: engine.load(settings, model, stored(weights)),
                             lambda: engine.weights_of(model))
    before = {key: value.clone() for key, value in engine.weights_of(model).items()}
    engine.after_loading(settings, model)
    after = engine.weights_of(model)
    passing = [key for key in before if key not in after and PASSING.search(key)]
    if name.endswith("-stored") and HEAD not in after:  # vLLM tied it when it found a copy
        passing.append(HEAD)
    for key in passing:
        loaded.pop(key, None)
        before.pop(key, None)
    shapes = {key: tuple(value.shape) for key, value in before.items()}
    changed = [key for key, value in before.items()
               if not PACKED.search(key) and (key not in after or not torch.equal(after[key], value))]
    changed += [key for key in after if key not in before and not DERIVED.search(key)]
    return (checkpoint.difference("vLLM", loaded, layout[rank]) or
            (f"changed after loading: {changed[:3]}" if changed else None) or
            notes_answer(notes, model, settings)), shapes


def engine_of_refused(case, rank, tool, folder):
    """The words of vLLM about a case that the layout refuses: its error, or what it builds."""
    _, config, setting = case
    try:
        comparison.inference_pieces(tool, config / "config.json", f"vllm:{setting}", RANKS)
        return ["the layout does not refuse"]
    except RuntimeError:
        pass
    try:
        return comparison.as_lines({key: tuple(value.shape) for key, value in engine.weights_of(
            engine.build(start(case, rank, folder))).items()})
    except Exception as error:
        return [str(error)]


def work(rank, cases, tool, folder):
    """Leaves for every case what compare or engine_of_refused says of this rank."""
    torch.set_num_threads(1)
    engine.keep_weights_plain()
    for number, case in enumerate(cases):
        try:
            result = (engine_of_refused if is_refused(case) else compare)(case, rank, tool, folder)
        except Exception as error:  # the other cases tell more
            result = f"{type(error).__name__}: {error}"[:300], {}
        torch.save(result, folder / f"{number}-{rank}.pt")
        engine.stop_groups()
        torch.distributed.barrier()


def is_refused(case):
    name, _, setting = case
    return setting in REFUSED.get(name, {})


# ---- tables


def write_tables(folder, models, tables):
    version = ".".join(engine.version().split(".")[:2])
    for name, parts in tables.items():
        (folder / "models" / f"vllm-{name}.json").write_text(json.dumps(models[name], indent=2) + "\n")
        comparison.write_table(folder / f"vllm-{version}_{name}.txt", "scripts/test-vllm.sh",
                               f"vLLM {engine.version()}", f"vllm-{name}", parts)


def find_cases(models, folder, only):
    """(model's name, the folder with its config.json, setting), and the models."""
    cases, configs = [], {}
    for name in MODELS:
        if only in (None, name):
            configs[name] = model_of(models, name)
            write_model(folder / name, name, configs[name])
            cases += [(name, folder / name, setting)
                      for setting in [*SETTINGS.get(name, []), *REFUSED.get(name, [])]]
    return cases, configs


def judge(case, results):
    """What is wrong with a case, or nothing."""
    name, _, setting = case
    if is_refused(case):
        words = [word for result in results for word in result]
        expected = REFUSED[name][setting]
        return None if any(re.search(expected, word) for word in words) else (
            f"vLLM says nothing of '{expected}', but {words[0]}")
    return next((f"rank {rank}: {wrong}" for rank, (wrong, _) in enumerate(results) if wrong), None)


def main():
    arguments = comparison.parse_arguments(__doc__, MODELS)
    failed, tables = 0, {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cases, models = find_cases(arguments.models, folder, arguments.only)
        torch.multiprocessing.spawn(work, (cases, arguments.layout_tool, folder), nprocs=RANKS)
        for number, case in enumerate(cases):
            model, _, setting = case
            results = [torch.load(folder / f"{number}-{rank}.pt") for rank in range(RANKS)]
            wrong = judge(case, results)
            right = ("ok, refused" if is_refused(case) else
                     f"ok, {sum(len(shapes) for _, shapes in results)} weights")
            print(f"{model} vllm:{setting}: {wrong or right}", flush=True)
            failed += wrong is not None
            if not is_refused(case):
                tables.setdefault(model, []).append(
                    comparison.table(f"vllm:{setting}", [shapes for _, shapes in results]))
    if arguments.write:
        write_tables(arguments.write, models, tables)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
