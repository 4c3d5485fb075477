#!/usr/bin/env python3
"""Compares the layout `vllm:…` with vLLM itself, on the CPU.

For every model and setting, vLLM builds the model on RANKS processes and loads, by its own
load_weights, checkpoints whose elements tell where they come from: digit by digit of their number,
a digit a checkpoint, each exact in bf16. Names, shapes, dtypes and every element that a rank then
holds must be what the layout says, and still be so after vLLM's post-load step.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what vLLM holds as the tables that engine_tables_test reads.
"""
import argparse
import datetime
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import torch.multiprocessing

import engine

RANKS = 4
DENSE = ["tp=1", "tp=2", "tp=4", "tp=2,pp=2", "tp=1,pp=4", "tp=2,dp=2"]
MOE = [setting for setting in DENSE if setting != "tp=1,pp=4"] + [  # a stage without experts is refused
    "tp=4,ep=on", "tp=2,ep=on", "tp=2,dp=2,ep=on", "tp=1,dp=4,ep=on", "tp=1,dp=4",
               "tp=2,pp=2,ep=on"]
SETTINGS = {"llama": DENSE, "llama-tied": DENSE, "qwen2": DENSE, "qwen3": DENSE,
            "qwen3-moe": MOE, "qwen3-moe-tied": ["tp=2", "tp=2,pp=2"], "deepseek": [*MOE, "tp=1,pp=2,dp=2,ep=on"],
            "deepseek-one-q": MOE, "glm": MOE}
DIGITS = 3  # Of an element's number, in base 256.
# vLLM's kernels for experts on x86 pack them after loading; those for GPUs are not asked here.
PACKED = re.compile(r"experts\.w(13|2)_weight$")
DERIVED = re.compile(r"\.(W_UV|W_UK_T)$")  # Of kv_b_proj: copies_of_kv_b looks for those that are no views.
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


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


def pieces(tool, config, spec):
    """(tensors: name to shape, ranks: name to (dtype, shape, pieces))."""
    done = subprocess.run([tool, "pieces", config, spec, str(RANKS)], text=True,
                          capture_output=True, timeout=100, check=False)
    if done.returncode != 0:
        sys.exit(f"layout_tool pieces {config} {spec}\n{done.stderr}")
    tensors, ranks = {}, []
    for line in done.stdout.splitlines():
        kind, *words = line.split()
        if kind == "tensor":
            tensors[words[0]] = (int(words[1]), int(words[2]))
        elif kind == "rank":
            ranks.append({})
        elif kind == "parameter":
            ranks[-1][words[0]] = (words[1], (int(words[2]), int(words[3])), [])
            last = ranks[-1][words[0]][2]
        else:
            last.append((words[0], *map(int, words[1:])))
    return tensors, ranks


def number_elements(tensors):
    """Every tensor with the numbers of its elements, from 1 on: 0 is for padding."""
    numbers, first = {}, 1
    for name, (rows, cols) in tensors.items():
        numbers[name] = torch.arange(first, first + rows * cols).view(rows, cols)
        first += rows * cols
    assert first < 256 ** DIGITS
    return numbers


def expected_of(shape, parts, numbers):
    expected = torch.zeros(shape[0] * shape[1], dtype=torch.int64)
    for tensor, row, row_end, col, col_end, offset, stride in parts:
        box = numbers[tensor][row:row_end, col:col_end]
        expected.as_strided(box.shape, (stride, 1), offset).copy_(box)
    return expected.view(shape)


def checkpoint_of(tensors, numbers, digit):
    """What a file would hold: vectors have one dimension."""
    for name in tensors:
        values = (numbers[name] // 256 ** digit % 256).to(torch.bfloat16)
        vector = values.shape[1] == 1 and "proj.weight" not in name
        yield name, (values.view(-1) if vector else values).clone()


def difference(held, layout, numbers):
    """What the layout has wrong first, or nothing."""
    for name in sorted(held.keys() | layout.keys()):
        if name not in held or name not in layout:
            return f"only {'the layout' if name in layout else 'vLLM'} has {name}"
        dtype, shape, parts = layout[name]
        number, real_dtype, real_shape = held[name]
        if DTYPES[real_dtype] != dtype:
            return f"{name} is {DTYPES[real_dtype]} in vLLM, {dtype} in the layout"
        if number.shape[0] * (number[0].numel() if number.dim() > 1 else 1) != shape[0] * shape[1]:
            return f"{name} is {tuple(real_shape)} in vLLM, {shape} in the layout"
        if not torch.equal(number.reshape(shape), expected_of(shape, parts, numbers)):
            return f"{name} holds other elements"
    return None


def work_one(case, rank, tool, folder, number):
    name, config, setting = case
    spec = f"vllm:{setting}"
    tensors, ranks = pieces(tool, config / "config.json", spec)
    numbers = number_elements(tensors)
    settings = engine.config_of(config, spec, rank)
    engine.start_groups(settings, rank, RANKS, folder / "store")
    model = engine.build(settings)
    totals = {}
    for digit in range(DIGITS):
        for value in engine.weights_of(model).values():
            value.zero_()
        engine.load(settings, model, checkpoint_of(tensors, numbers, digit))
        for key, value in engine.weights_of(model).items():
            totals[key] = totals.get(key, 0) + value.to(torch.float64).to(torch.int64) * 256 ** digit
    held = {key: (totals[key], value.dtype, value.shape)
            for key, value in engine.weights_of(model).items()}
    before = {key: value.clone() for key, value in engine.weights_of(model).items()}
    wrong = difference(held, ranks[rank], numbers)
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


# ---- tables


def intervals(numbers):
    result = []
    for number in sorted(numbers):
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def table(spec, ranks):
    """As tests/layout/engine_tables/README.md says."""
    lines = [f"spec {spec}", f"ranks {len(ranks)}"]
    rest = list(range(len(ranks)))
    while rest:
        alike = [rank for rank in rest if ranks[rank] == ranks[rest[0]]]
        lines.append("on " + " ".join(f"{first}-{last}" for first, last in intervals(alike)))
        lines += [f"{name} {' '.join(map(str, shape))}" for name, shape in ranks[rest[0]].items()]
        rest = [rank for rank in rest if rank not in alike]
    return "\n".join(lines) + "\n"


def write_tables(folder, models, tables):
    version = ".".join(engine.version().split(".")[:2])
    for name, parts in tables.items():
        (folder / "models" / f"vllm-{name}.json").write_text(json.dumps(models[name], indent=2) + "\n")
        text = (f"# Written by scripts/test-vllm.sh --write: what vLLM {engine.version()} itself "
                f"holds.\nmodel vllm-{name}\n\n")
        (folder / f"vllm-{version}_{name}.txt").write_text(text + "\n".join(parts))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layout-tool", required=True, type=pathlib.Path)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--only", choices=SETTINGS)
    arguments = parser.parse_args()
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
                    table(f"vllm:{setting}", [result["shapes"] for result in results]))
        if arguments.write:
            write_tables(arguments.write, models, tables)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
