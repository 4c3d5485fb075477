#!/usr/bin/env python3
"""Compares the layout `megatron:…,spec=local` with megatron-core itself, on the CPU.

For every model and setting of SETTINGS, megatron-core builds the model on RANKS processes with random
weights. The names and shapes of every rank's weights must be the layout's. The layout's boxes then
turn all ranks' weights into a Hugging Face checkpoint; transformers loads it, and both models must
compute the same logits.

usage: against_engine.py --layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]

--write FOLDER also writes what megatron-core holds as the tables that engine_tables_test reads.
"""
import datetime
import json
import logging
import pathlib
import re
import shutil
import sys
import tempfile

logging.disable(logging.WARNING)  # of a machine without a GPU, when these are imported
import megatron.core
import safetensors.torch
import torch
import torch.multiprocessing
import transformers
from megatron.core import parallel_state

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
import engine
import engine_comparison as comparison

RANKS = 4
SETTINGS = {
    "small-llama": ["tp=2", "pp=2", "tp=4", "tp=2,pp=2,vpp=2", "tp=2,pp=2,pad_with_tp=off"],
    "small-qwen2": ["tp=2", "pp=2", "tp=2,pp=2,first=2",
                    "pp=4,account_for_embedding=on,account_for_loss=on"],
    "small-qwen3": ["tp=2", "tp=2,pp=2,last=1", "tp=2,pp=2,layout=Et|(tt|)*2tL",
                    "pp=2,vpp=3,pad_vocab=64"],
    "small-qwen3-moe": ["ep=2", "tp=2", "tp=2,ep=2,etp=1", "tp=2,ep=2", "pp=2,ep=2", "ep=4"],
    "small-deepseek": ["tp=2", "pp=2,ep=2", "tp=2,ep=4,etp=1", "tp=2,pp=2,ep=2,etp=1"],
    "small-deepseek-one-q": ["tp=2,ep=2", "pp=2,vpp=2,ep=2"],
    "small-glm": ["tp=2,ep=2,etp=1", "tp=2,pp=2,first=1"],
}
# Logits are of the order of one, and fp32 sums run in another order.
TOLERANCE = 2e-5


def spec_of(setting, model):
    tp = "" if setting.startswith("tp=") else "tp=1,"
    experts = ",experts=sequential" if "moe_intermediate_size" in model else ""
    return f"megatron:{tp}{setting}{experts},spec=local"


# ---- one process for each rank of megatron-core


def example_tokens(model):
    return torch.randint(0, model["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(5))


def work_one(model, spec, folder):
    """Leaves this rank's weights in `folder`, and the logits where this rank has them."""
    options = engine.options_of(spec)
    engine.start_groups(options)
    chunks = engine.build(model, options)
    weights = engine.weights_of(chunks)
    engine.randomize(weights)
    rank = torch.distributed.get_rank()
    values = {name: weight.detach().contiguous() for name, weight in weights.items()}
    safetensors.torch.save_file(values, folder / f"rank-{rank}.safetensors")
    with torch.no_grad():
        logits = engine.logits(chunks, model, example_tokens(model))
    if logits is not None:
        torch.save(logits, folder / f"logits-{rank}.pt")
    parallel_state.destroy_model_parallel()


def work(rank, cases, folder):
    """Everything that one rank does, for all cases."""
    torch.set_num_threads(1)
    engine.run_without_gpu()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                                         world_size=RANKS, timeout=datetime.timedelta(minutes=5))
    for number, (_, model, spec) in enumerate(cases):
        work_one(model, spec, folder / str(number))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# ---- comparing


def engine_shapes(folder):
    """For each rank, name to shape."""
    ranks = []
    for rank in range(RANKS):
        with safetensors.safe_open(folder / f"rank-{rank}.safetensors", "pt") as file:
            ranks.append({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
    return ranks


def difference(engine, layout):
    """What the layout has wrong first, or nothing; its vectors are matrices of one column."""
    for rank, (real, ours) in enumerate(zip(engine, layout, strict=True)):
        real = {name: shape if len(shape) == 2 else (*shape, 1) for name, shape in real.items()}
        for name in sorted(real.keys() | ours.keys()):
            if real.get(name) != ours.get(name):
                return (f"rank {rank}: {name} has shape {real.get(name)} in megatron-core and "
                        f"{ours.get(name)} in the layout")
    return None


def largest_difference(model, config, tool, spec, folder):
    """Between the logits of megatron-core on any rank and those of transformers with the checkpoint
    that the layout makes."""
    checkpoint = folder / "checkpoint"
    comparison.run(tool, "gather", config, spec, str(RANKS), folder, checkpoint)
    shutil.copy(config, checkpoint / "config.json")  # with what only matters for computing
    reference, loading = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[kind], (kind, loading[kind])
    with torch.no_grad():
        expected = reference.eval()(example_tokens(model)).logits
    assert expected.abs().max() > 0.5, "the logits say nothing"
    results = [torch.load(file) for file in folder.glob("logits-*.pt")]
    assert results, "no rank computed logits"
    return max((result - expected).abs().max().item() for result in results)


# ---- tables


def join_numbers(weights):
    """Lines "name shape" with the names of experts, then those of layers, that differ in a number
    alone written as one, {first-last} for the number."""
    lines = comparison.as_lines(weights)
    for pattern in (r"(.*local_experts\.)(\d+)(\..*)", r"(.*layers\.)(\d+)(\..*)"):
        numbers = {}
        for line in lines:
            match = re.fullmatch(pattern, line)
            head, number, tail = match.groups() if match else (line, None, "")
            numbers.setdefault((head, tail), []).append(number)
        lines = [line for (head, tail), found in numbers.items() for line in join(head, found, tail)]
    return lines


def join(head, numbers, tail):
    if numbers == [None]:
        return [head + tail]
    return [f"{head}{{{first}-{last}}}{tail}"
            for first, last in comparison.intervals(map(int, numbers))]


def write_tables(folder, tables):
    version = megatron.core.__version__.split("+")[0]  # the release; a wheel adds its own commit
    for name, parts in tables.items():
        comparison.write_table(folder / f"megatron-core_{name}.txt", "scripts/test-megatron.sh",
                               f"megatron-core {version}", name, parts)


def find_cases(folder, only):
    """(model's name, its config, a layout's spec) for every setting."""
    cases = []
    for name, settings in SETTINGS.items():
        model = json.loads((folder / f"{name}.json").read_text())
        if only in (None, name):
            cases += [(name, model, spec_of(setting, model)) for setting in settings]
    return cases


def check(case, shapes, arguments, folder):
    """Whether this case's layout is right; says so."""
    name, model, spec = case
    config = arguments.models / f"{name}.json"
    wrong = difference(shapes, comparison.trainer_shapes(arguments.layout_tool, config, spec, RANKS))
    if wrong is None:
        largest = largest_difference(model, config, arguments.layout_tool, spec, folder)
        if not largest < TOLERANCE:
            wrong = f"logits differ by {largest:.2g}"
    right = f"ok, {sum(map(len, shapes))} weights on {RANKS} ranks"
    print(f"{name} {spec}: {wrong or right}", flush=True)
    return wrong is None


def run_cases(cases, arguments, folder):
    """How many cases passed."""
    transformers.utils.logging.disable_progress_bar()
    for number in range(len(cases)):
        (folder / str(number)).mkdir()
    torch.multiprocessing.spawn(work, (cases, folder), nprocs=RANKS)
    tables = {}
    passed = 0
    for number, case in enumerate(cases):
        shapes = engine_shapes(folder / str(number))
        passed += check(case, shapes, arguments, folder / str(number))
        tables.setdefault(case[0], []).append(comparison.table(case[2], shapes, join_numbers))
    if arguments.write:
        write_tables(arguments.write, tables)
    return passed


def main():
    arguments = comparison.parse_arguments(__doc__, SETTINGS)
    cases = find_cases(arguments.models, arguments.only)
    with tempfile.TemporaryDirectory() as folder:
        passed = run_cases(cases, arguments, pathlib.Path(folder))
    print(f"{passed} passed, {len(cases) - passed} failed")
    return 0 if passed == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
