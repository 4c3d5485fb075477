"""What scripts that compare a layout with the engine itself share: the layout as layout_tool prints
it, checkpoints whose elements tell where they come from, the first difference, and tables. It knows
no engine.
"""
import argparse
import itertools
import pathlib
import subprocess

import torch

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16",
          torch.float8_e4m3fn: "F8_E4M3"}


def parse_arguments(description, models):
    """--layout-tool PROGRAM --models FOLDER [--write FOLDER] [--only MODEL]."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--layout-tool", required=True, type=pathlib.Path)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--only", choices=models)
    return parser.parse_args()


# ---- the layout


def run(*command):
    """What the command prints. Raises what it says if it fails."""
    done = subprocess.run(command, text=True, capture_output=True, timeout=100, check=False)
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{done.stderr.strip()}\n{words}: exit code {done.returncode}")
    return done.stdout


def trainer_shapes(tool, config, spec, ranks):
    """For each rank, name to shape; a vector has one column."""
    shapes = []
    for line in run(tool, "list", config, spec, str(ranks)).splitlines():
        words = line.split()
        if words[0] == "rank":
            shapes.append({})
        else:
            shapes[-1][words[0]] = (int(words[1]), int(words[2]))
    return shapes


def inference_pieces(tool, config, spec, ranks):
    """(tensors of the model: name to (dtype, shape); for each rank: name to (dtype, shape, pieces)).
    A piece is (tensor, first row, end row, first column, end column, offset, stride), the latter two
    in elements of the parameter. Raises what the layout says if it refuses."""
    tensors, layout = {}, []
    for line in run(tool, "pieces", config, spec, str(ranks)).splitlines():
        kind, *words = line.split()
        if kind == "tensor":
            tensors[words[0]] = (words[1], (int(words[2]), int(words[3])))
        elif kind == "rank":
            layout.append({})
        elif kind == "parameter":
            pieces = []
            layout[-1][words[0]] = (words[1], (int(words[2]), int(words[3])), pieces)
        elif kind == "piece":
            pieces.append((words[0], *map(int, words[1:])))
    return tensors, layout


def inference_notes(tool, config, spec, ranks):
    """What the user must do or know, as the layout says it."""
    lines = run(tool, "pieces", config, spec, str(ranks)).splitlines()
    return [line.removeprefix("note ") for line in lines if line.startswith("note ")]


# ---- checkpoints whose elements tell where they come from


class MarkedCheckpoint:
    """Numbers the elements of all tensors from 1 on; 0 is for padding. An element's number is spread
    over `digits` checkpoints, a digit in each: digits are small integers, exact in every dtype."""

    def __init__(self, tensors):
        """`tensors` as inference_pieces gives them."""
        self.dtypes = {name: dtype for name, (dtype, _) in tensors.items()}
        self.numbers, first = {}, 1
        for name, (_, (rows, cols)) in tensors.items():
            self.numbers[name] = torch.arange(first, first + rows * cols).view(rows, cols)
            first += rows * cols
        # Integers are exact up to 16 in e4m3, up to 256 in bf16.
        self.base = 16 if "F8_E4M3" in self.dtypes.values() else 256
        self.digits = next(n for n in itertools.count(1) if self.base ** n >= first)

    def weights(self, digit):
        """(name, tensor) of the checkpoint of this digit, as a file would hold them: vectors have one
        dimension."""
        kinds = {name: kind for kind, name in DTYPES.items()}
        for name, numbers in self.numbers.items():
            values = (numbers // self.base ** digit % self.base).to(kinds[self.dtypes[name]])
            is_vector = values.shape[1] == 1 and "proj.weight" not in name
            yield name, values.reshape(-1) if is_vector else values

    def load(self, load_weights, held):
        """Has the engine load every digit. `load_weights` takes (name, tensor) pairs, `held()` gives
        the engine's own parameters: name to tensor. Returns name to (numbers, dtype)."""
        totals = {}
        for digit in range(self.digits):
            for value in held().values():
                value.zero_()
            load_weights(self.weights(digit))
            for name, value in held().items():
                digits = value.to(torch.float64).to(torch.int64) * self.base ** digit
                totals[name] = totals[name] + digits if name in totals else digits
        return {name: (totals[name], value.dtype) for name, value in held().items()}

    def expected(self, shape, pieces):
        """The numbers that a parameter of the layout is to hold."""
        expected = torch.zeros(shape[0] * shape[1], dtype=torch.int64)
        for tensor, row, row_end, col, col_end, offset, stride in pieces:
            box = self.numbers[tensor][row:row_end, col:col_end]
            expected.as_strided(box.shape, (stride, 1), offset).copy_(box)
        return expected.view(shape)

    def difference(self, engine, loaded, layout):
        """What one rank's layout has wrong first, or None. `loaded` as load() gives it, `layout` as
        inference_pieces does; `engine` is its name."""
        for name in sorted(loaded.keys() | layout.keys()):
            if name not in loaded or name not in layout:
                return f"only {'the layout' if name in layout else engine} has {name}"
            dtype, shape, pieces = layout[name]
            numbers, engine_dtype = loaded[name]
            if DTYPES[engine_dtype] != dtype:
                return f"{name} is {DTYPES[engine_dtype]} in {engine}, {dtype} in the layout"
            if numbers.numel() != shape[0] * shape[1]:
                return f"{name} is {tuple(numbers.shape)} in {engine}, {shape} in the layout"
            if not torch.equal(numbers.reshape(shape), self.expected(shape, pieces)):
                return f"{name} holds other elements"
        return None


# ---- tables


def intervals(numbers):
    """[first, last] of every run of numbers."""
    result = []
    for number in sorted(numbers):
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def as_lines(shapes):
    return [f"{name} {' '.join(map(str, shape))}" for name, shape in shapes.items()]


def table(spec, ranks, lines_of=as_lines):
    """As tests/layout/engine_tables/README.md says. `ranks` has name to shape for each rank."""
    lines = [f"spec {spec}", f"ranks {len(ranks)}"]
    rest = list(range(len(ranks)))
    while rest:
        alike = [rank for rank in rest if ranks[rank] == ranks[rest[0]]]
        lines.append("on " + " ".join(f"{first}-{last}" for first, last in intervals(alike)))
        lines += lines_of(ranks[rest[0]])
        rest = [rank for rank in rest if rank not in alike]
    return "\n".join(lines) + "\n"


def write_table(file, script, engine, model, tables):
    """`engine` with its version: "vLLM 0.32.0"."""
    file.write_text(f"# Written by {script} --write: what {engine} itself holds.\nmodel {model}\n\n" +
                    "\n".join(tables))
