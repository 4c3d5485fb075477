#!/usr/bin/env python3
"""Ours, Awex and torch_memory_saver on one GPU and the same sizes, in one run.

usage: one_gpu.py BUILD_DIR OUT_DIR [--model preset:qwen3-4b] [--rounds N] [--peers DIR]
       one_gpu.py --docs docs/benchmarks.md OUT_DIR

The first form measures and leaves one_gpu.json, one_gpu.md and one_gpu.svg in OUT_DIR; it returns 1
if a run of ours or of an installed peer failed. The second writes the tables into the docs and the
plot beside them, from OUT_DIR/one_gpu.json: it needs no GPU.

The peers come from PyPI into a folder that needs no network afterwards:

    pip install --target DIR --no-deps awex==0.9.0 torch_memory_saver==0.0.10 psutil

Besides they need PyTorch for CUDA, numpy, transformers and packaging. peer_awex.py says which steps
are Awex's own code. Rounds of ours (`--rounds`) and of the peers (`--peer-rounds`: their first
offloads take long) take turns; a round of a peer has several warm cycles. One system at a time has
the GPU, and its processes end before the next begin: host memory holds one backup, not two.
"""
import argparse
import concurrent.futures
import json
import mmap
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

import one_gpu_tables
import reports
from peer_shapes import MODELS, elements, inference_tensors

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/support"))
from sessions import run_in_session  # noqa: E402  pylint: disable=wrong-import-position

TIMEOUT_S = 300
MOST_TOUCHED_BYTES = 60 * 10**9
LINK_MIB = "4096"
EXPERTS = ("--model", "preset:qwen3-30b-a3b", "--layers", "24", "--optimizer", "none")


def say(text):
    print(text, file=sys.stderr, flush=True)


def available_bytes():
    """Of host memory, as the kernel estimates it."""
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def touch_pages(size):
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[::mmap.PAGESIZE] = bytes(-(-size // mmap.PAGESIZE))


def touch_host_memory(size):
    """Some virtual machines get their memory from the host as it is touched, at a tenth of its
    speed. Whoever runs first would pay for all: so nobody does."""
    # Processes, for the assignment to a slice holds the interpreter's lock.
    processes = os.cpu_count()
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        list(pool.map(touch_pages, [size // processes] * processes))


def host_memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True,
                              timeout=60).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def last_words(text):
    """The last line that tells of an error, or the last that says something, for a table."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalpha, line))]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no output"])[-1]


class Failures:
    """What failed; the run goes on and fails at its end."""

    def __init__(self):
        self.messages = []

    def add(self, message):
        say(f"error: {message}")
        self.messages.append(message)


class Ours:
    """Runs of awex-colocate and kernel_bench."""

    def __init__(self, options, failures):
        self._binary = options.build / "awex-colocate"
        self._kernels = options.build / "tests/gpu/kernel_bench"
        self._links = options.build / "benchmarks/all_links"
        self._options = options
        self._failures = failures

    def runs(self):
        """(name, ranks, arguments) of one round."""
        o = self._options
        model = ("--backend", o.backend, "--model", o.model)
        trainer = (*model, "--optimizer", "adamw", "--kv-cache", o.kv_cache)
        versions = ("--versions", "3")
        yield "update", 2, ("update", *trainer, *versions)
        yield "verify-off", 2, ("update", *trainer, *versions, "--verify", "off")
        yield "warm-host-memory", 2, ("update", *trainer, *versions, "--warm-host-memory")
        yield "no-offload", 2, ("update", *model, "--optimizer", "adamw", *versions,
                                "--no-offload", "--kv-cache", o.small_kv_cache)
        yield "transfer", 2, ("transfer", *model, "--optimizer", "none")
        if o.backend == "cuda":
            experts = ("--backend", "cuda", *EXPERTS)
            rollout = (*experts, "--kv-cache", o.kv_cache, *versions)
            yield "experts", 2, ("update", *rollout)
            yield "experts-verify-off", 2, ("update", *rollout, "--verify", "off")
            yield "experts-transfer", 2, ("transfer", *experts)
        yield "control", 4, ("update", "--backend", "host", "--model", "preset:tiny-dense",
                             "--layers", "1", "--optimizer", "none", "--no-offload", "--verify",
                             "off", "--versions", "50", "--kv-cache", "0")

    def round(self, reports):
        """Adds {name: report} of what succeeded."""
        for name, ranks, arguments in self.runs():
            report = self._run_json(name, ranks, (self._binary, *arguments, "--json", "-"))
            if report:
                reports[name] = report
        links = self._run_json("links", 1, (self._links, self._options.backend, LINK_MIB))
        if links:
            reports["links"] = links
        if self._options.backend == "cuda":
            kernels = self._kernel_lines()
            if kernels:
                reports["kernels"] = kernels

    def _run_json(self, name, ranks, program):
        say(f"ours: {name}")
        command = ["mpirun", "-np", str(ranks), "--bind-to", "none", "--oversubscribe",
                   *map(str, program)]
        try:
            result = run_in_session(command, TIMEOUT_S, stderr=subprocess.PIPE)
        except subprocess.TimeoutExpired:
            self._failures.add(f"{name}: did not end within {TIMEOUT_S} s")
            return None
        if result.returncode != 0:
            self._failures.add(f"{name}: exit code {result.returncode}: "
                               f"{last_words(result.stderr)}\n{result.stderr}")
            return None
        try:
            return json.loads(result.stdout)
        except ValueError as error:
            self._failures.add(f"{name}: {shlex.join(command)}: its output is no JSON: {error}\n"
                               f"{result.stdout}")
            return None

    def _kernel_lines(self):
        say("ours: kernel_bench")
        try:
            return subprocess.run([self._kernels], capture_output=True, text=True,
                                  timeout=TIMEOUT_S, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            self._failures.add(f"kernel_bench: {error}")
            return None


class Peers:
    """Runs of the packages in a folder, each in processes of its own."""

    def __init__(self, options, failures):
        self._options = options
        self._failures = failures
        self.results = {}

    def measure(self, package, script, *arguments):
        self.results.setdefault(package, []).append(self._measure(package, script, arguments))

    def _measure(self, package, script, arguments):
        if not (self._options.peers / package).is_dir():
            return {"error": f"not installed in {self._options.peers}"}
        say(f"peer: {package}")
        path = os.pathsep.join(filter(None, [str(self._options.peers),
                                             os.environ.get("PYTHONPATH")]))
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "out.json"
            command = [sys.executable, HERE / script, out, self._options.model,
                       str(self._options.warm_cycles), *arguments]
            try:
                result = run_in_session(command, TIMEOUT_S, stderr=subprocess.STDOUT,
                                        env={**os.environ, "PYTHONPATH": path})
            except subprocess.TimeoutExpired:
                return self._failed(package, f"did not end within {TIMEOUT_S} s", "")
            if result.returncode != 0:
                return self._failed(package, last_words(result.stdout), result.stdout)
            return json.loads(out.read_text(encoding="utf-8"))

    def _failed(self, package, why, text):
        self._failures.add(f"{package}: {why}\n{text}")
        return {"error": f"failed: {why}"}

    def round(self):
        if self._options.backend != "cuda" or self._options.model not in MODELS:
            return
        self.measure("awex", "peer_awex.py")
        self.measure("torch_memory_saver", "peer_tms.py", str(8 * 10**9))


def check_sizes(results, model_name, failures):
    """Holds the peers' table of shapes against the model that ours loaded."""
    if model_name not in MODELS or "update" not in results["ours"][0]:
        return
    ours = results["ours"][0]["update"]["model"]["bytes"]
    theirs = 2 * elements(inference_tensors(MODELS[model_name]))
    if ours != theirs:
        failures.add(f"{model_name} has {ours} bytes in ours and {theirs} in the peers' table: "
                     "correct benchmarks/peer_shapes.py")


def versions(build):
    found = {"ours": first_line(build / "awex-colocate", "--version"),
             "commit": first_line("git", "-C", HERE, "rev-parse", "--short", "HEAD"),
             "driver": first_line("nvidia-smi", "--query-gpu=driver_version",
                                  "--format=csv,noheader"),
             "mpirun": first_line("mpirun", "--version")}
    try:
        import torch
        found["PyTorch"] = torch.__version__
    except ImportError:
        found["PyTorch"] = "not installed"
    return found


def measure(options, failures):
    if options.backend == "cuda":
        size = min(MOST_TOUCHED_BYTES, available_bytes() // 2)
        say(f"touching {size / 1e9:.0f} GB of host memory")
        touch_host_memory(size)
    ours, others = Ours(options, failures), Peers(options, failures)
    gpu = first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    results = {"model": options.model, "backend": options.backend,
               "gpu": gpu if options.backend == "cuda" else "host memory",
               "cores": len(os.sched_getaffinity(0)), "host_memory_bytes": host_memory_bytes(),
               "versions": versions(options.build), "ours": [], "peers": others.results}
    for number in range(max(options.rounds, options.peer_rounds)):
        if number < options.rounds:
            results["ours"].append({})
            ours.round(results["ours"][-1])
            reports.keep("one_gpu", results, options.out)
        if number < options.peer_rounds:
            others.round()
            reports.keep("one_gpu", results, options.out)
    for package, runs in others.results.items():
        results["versions"].update({package: run["version"] for run in runs if "version" in run})
    check_sizes(results, options.model, failures)
    return results


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path, nargs="?", metavar="BUILD_DIR")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--docs", type=pathlib.Path, help="write OUT_DIR's figures into this text")
    parser.add_argument("--model", help="default: preset:qwen3-4b, on host preset:tiny-dense")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda",
                        help="host tries ours without a GPU; the peers are left out")
    parser.add_argument("--rounds", type=int, default=2, help="of ours")
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--warm-cycles", type=int, default=3, help="of the peers, a round")
    parser.add_argument("--peers", type=pathlib.Path, default=HERE / "peers",
                        help="folder with the peers' packages")
    options = parser.parse_args()
    if not options.docs and not options.build:
        parser.error("BUILD_DIR is missing")
    if options.rounds < 1 or options.peer_rounds < 0 or options.warm_cycles < 1:
        parser.error("--rounds and --warm-cycles are 1 or more, --peer-rounds 0 or more")
    on_host = options.backend == "host"
    options.model = options.model or ("preset:tiny-dense" if on_host else "preset:qwen3-4b")
    options.kv_cache, options.small_kv_cache = ("8MB", "1MB") if on_host else ("8GB", "1GB")
    return options


def main():
    options = parse_options()
    if options.docs:
        reports.write_docs("one_gpu", one_gpu_tables, options.docs, options.out)
        return
    if not shutil.which("mpirun"):
        sys.exit("error: mpirun is not on PATH: install Open MPI")
    options.build = options.build.resolve()
    for program in ("awex-colocate", "benchmarks/all_links"):
        if not (options.build / program).is_file():
            sys.exit(f"error: no {program} in {options.build}: ninja -C {options.build} "
                     "awex-colocate all_links, and on cuda kernel_bench; see docs/benchmarks.md")
    options.peers = options.peers.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    failures = Failures()
    reports.write("one_gpu", one_gpu_tables, measure(options, failures), options.out)
    say(f"took {time.monotonic() - start:.0f} s")
    if failures.messages:
        sys.exit("error: failed: " +
                 "; ".join(message.splitlines()[0] for message in failures.messages))


if __name__ == "__main__":
    main()
