#!/usr/bin/env python3
"""The cycle on several GPUs of one machine: every setting's digests, bytes and times, what plain NCCL
and plain copies reach with all GPUs at once, and ranks that are killed in each phase.

usage: several_gpus.py BUILD_DIR OUT_DIR [options]

Needs the targets awex-colocate, all_links, disturbed_update and, for cuda, nccl_limit. Writes
several_gpus.json and several_gpus.md into OUT_DIR, beside the reports of all runs. A run that fails
stands in the table as failed, and the exit code is 1. Ranks are killed on the largest number of GPUs.

The settings: (a) the same tensor parallelism on both sides, (b) a data parallel trainer, (c) a
pipeline, (d) expert parallelism, into tensor parallel inference over all GPUs. See settings_of.

Of Qwen3-30B-A3B 8 layers are kept: they divide by the stages of 2, 4 and 8 GPUs, and with AdamW and
the KV cache take 45 GB a GPU in the tightest setting, (d) on 2 GPUs (Qwen3-8B takes 57 GB there).
"""
import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import several_gpus_table as tables

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests/support"), str(REPOSITORY / "tests/cycle")]
from disturbed_update_test import PHASES  # noqa: E402  pylint: disable=wrong-import-position
from mpi_run import mpi_run, output_of, shared_files_of  # noqa: E402  pylint: disable=wrong-import-position

VERSIONS = 4
TRANSFERS = 8
RUN_LIMIT_S = 240  # of one run; each of its waits has half of it
FAULT_TIMEOUT_S = 20
FAULT_LIMIT_S = 90
MOST_MEMORY_LEFT = 64 << 20  # what the driver may keep of a GPU


@dataclasses.dataclass
class Bench:
    """Where everything is, and how the programs are started."""
    build: pathlib.Path
    out: pathlib.Path
    backend: str
    share_gpu: bool
    start: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def program(self):
        return str(self.build / "awex-colocate")

    def say(self, what):
        print(f"[{time.monotonic() - self.start:5.0f} s] {what}", file=sys.stderr, flush=True)

    def launch(self, name, ranks, command, limit_s=RUN_LIMIT_S, disturb=None):
        """A run under mpirun; keeps what it prints. Raises TimeoutError."""
        self.say(name)
        # Without binding, for two ranks get one core each.
        run = mpi_run("mpirun", ranks, ["--bind-to", "none", *map(str, command)], limit_s, disturb)
        (self.out / f"{name}.stdout").write_text(run.stdout, encoding="utf-8")
        (self.out / f"{name}.stderr").write_text(run.stderr, encoding="utf-8")
        return run


def last_lines(text, lines=3):
    return " / ".join(text.strip().splitlines()[-lines:])


def output_or_none(command):
    """Stdout of a program that a machine may not have."""
    try:
        return subprocess.run(command, text=True, capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def query_gpus(keys):
    """Rows of nvidia-smi; none where there is no such program."""
    text = output_or_none(["nvidia-smi", f"--query-gpu={','.join(keys)}",
                           "--format=csv,noheader,nounits"])
    return [[cell.strip() for cell in line.split(",")] for line in (text or "").splitlines()]


def describe_machine(bench):
    names = [row[0] for row in query_gpus(["name"])] if bench.backend == "cuda" else []
    gpus = f"{len(names)} × {names[0]}" if names else "host memory standing in for GPUs"
    topology = output_or_none(["nvidia-smi", "topo", "-m"])
    if topology:
        (bench.out / "topology.txt").write_text(topology, encoding="utf-8")
    return {"name": f"{gpus}, {os.cpu_count()} processors", "topology": topology}


def numa_nodes():
    """The node of each GPU by UUID, as the kernel tells it; -1 of its own is nothing known."""
    nodes = {}
    for uuid, bus_id in query_gpus(["uuid", "pci.bus_id"]):
        domain, _, rest = bus_id.lower().partition(":")
        path = pathlib.Path("/sys/bus/pci/devices") / f"{domain[-4:]}:{rest}" / "numa_node"
        node = int(path.read_text(encoding="ascii")) if path.exists() else -1
        nodes[uuid] = node if node >= 0 else None
    return nodes


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def plan_of(bench, setting):
    """What `plan` says of a setting, or None, and why: then nothing can be measured."""
    try:
        return json.loads(output_of([bench.program, "plan", *setting.job, "--gpus",
                                     str(setting.gpus), "--gpus-per-node", str(setting.gpus),
                                     "--json", "-"])), []
    except (SystemExit, subprocess.TimeoutExpired, ValueError) as refused:
        return None, [f"plan of {setting.name}: {last_lines(str(refused))}"]


def digest_of(bench, model):
    """The checkpoint's digest, or None, and why there is none."""
    bench.say(f"digest of {model.label}")
    try:
        return output_of([bench.program, "digest", model.source, "--layers",
                          str(model.layers)]).split()[-2], []
    except (SystemExit, subprocess.TimeoutExpired, IndexError) as refused:
        return None, [f"digest of {model.label}: {last_lines(str(refused))}"]


def update(bench, setting, name, options):
    """The report of an update, or None, and what went wrong with the run itself."""
    path = bench.out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [bench.program, "update", *setting.job, "--backend", bench.backend,
               "--timeout", f"{RUN_LIMIT_S // 2}s", "--json", path, "-v", *options]
    try:
        run = bench.launch(name, 2 * setting.gpus,
                           command + ["--share-gpu"] * bench.share_gpu)
    except TimeoutError as late:
        return None, [f"{name}: {str(late).splitlines()[0]}"]
    failures = [f"{name} left {what}" for what in run.left]
    if run.code != 0:
        failures.append(f"{name}: exit code {run.code}: {last_lines(run.stderr)}")
        return None, failures
    return read_json(path), failures


def measure_links(bench, gpus, failures):
    """What all links reach at once, with each GPU's NUMA node; None when that failed."""
    mib = {"cuda": 1024, "host": 64}[bench.backend]
    try:
        run = bench.launch(f"{gpus}gpus-links", gpus,
                           [bench.build / "benchmarks/all_links", bench.backend, mib])
    except TimeoutError as late:
        failures.append(str(late).splitlines()[0])
        return None
    if run.code != 0:
        failures.append(f"all_links on {gpus} GPUs: exit code {run.code}: {last_lines(run.stderr)}")
        return None
    links = json.loads(run.stdout)
    nodes = numa_nodes() if bench.backend == "cuda" else {}
    for device in links["devices"]:
        device["numa_node"] = nodes.get(device["uuid"])
    return links


def measure_nccl(bench, gpus, plans, failures):
    """Seconds of plain NCCL for each plan with remote bytes, by the setting's name."""
    matrices = {}
    for setting, plan in plans.items():
        matrix = tables.exchanged(plan["traffic"]["bytes_from_row_to_column"])
        if any(map(any, matrix)):
            matrices[setting.name] = matrix
    if bench.backend != "cuda" or not matrices:
        return {}
    path = bench.out / f"{gpus}gpus-matrices.json"
    path.write_text(json.dumps(matrices), encoding="utf-8")
    try:
        run = bench.launch(f"{gpus}gpus-nccl", gpus,
                           [bench.build / "benchmarks/nccl_limit", path]
                           + ["share-gpu"] * bench.share_gpu)
    except TimeoutError as late:
        failures.append(str(late).splitlines()[0])
        return {}
    if run.code != 0:
        failures.append(f"nccl_limit on {gpus} GPUs: exit code {run.code}: {last_lines(run.stderr)}")
        return {}
    results = json.loads(run.stdout)
    failures += [f"{name}: {result['wrong_messages']} messages of plain NCCL arrived wrong"
                 for name, result in results.items() if result["wrong_messages"]]
    return results


def measure_setting(bench, setting, plan, digests):
    """The reports of a whole cycle and of the transfer alone, and what is wrong. `digests` holds the
    checkpoint's and, once a trained model has gone through, those of all its versions."""
    cycle, failures = update(bench, setting, setting.name,
                             ["--versions", VERSIONS, "--kv-cache", bench_kv_cache(bench),
                              "--warm-host-memory"])
    if cycle:
        trains = setting.optimizer == "adamw"
        untrained = [digests["checkpoint"]] * VERSIONS if digests["checkpoint"] else []
        expected = digests["trained"] if trains else untrained
        failures += tables.faults_of_update(cycle, plan, digests["checkpoint"], expected)
        if trains and not failures:
            digests["trained"] = [version["digest"]["model"] for version in cycle["versions"]]
    bare = dataclasses.replace(setting, optimizer="none")
    alone, more = update(bench, bare, f"{setting.name}-transfer",
                         ["--versions", TRANSFERS, "--kv-cache", "0", "--no-offload", "--verify",
                          "off"])
    return cycle, alone, failures + more


def bench_kv_cache(bench):
    return {"cuda": "2GiB", "host": "4MiB"}[bench.backend]


def touch_memory(bench, setting):
    """Hosts that hand out memory only when it is touched are slow the first time: not kept."""
    bench.say("touching host memory")
    return update(bench, setting, "touch", ["--versions", 1, "--kv-cache", "0", "--limits", "off"])[1]


def used_memory():
    """Of each GPU in bytes, by index."""
    return {int(index): int(mib) << 20 for index, mib in query_gpus(["index", "memory.used"])}


def memory_left(before):
    """GPUs that hold more than before, a moment after a run."""
    for _ in range(20):
        left = [f"GPU {index} holds {(used - before[index]) >> 20} MiB more than before"
                for index, used in used_memory().items()
                if used > before[index] + MOST_MEMORY_LEFT]
        if not left:
            return []
        time.sleep(0.25)
    return left


def shared_files():
    """This user's files in /dev/shm."""
    files = set()
    for entry in os.scandir("/dev/shm"):
        with contextlib.suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                files.add(entry.path)
    return files


def files_left(before):
    """This user's files in /dev/shm that were not there before a run."""
    return [f"{path} is left" for path in sorted(shared_files() - before)]


def watch_shared_files(seen):
    """Notes that a job which has begun has files in /dev/shm: without any, to look for those that
    are left shows nothing."""

    def watch(rank_pids):
        give_up = time.monotonic() + 10
        while not seen and time.monotonic() < give_up:
            seen.update(shared_files_of(rank_pids()))
            time.sleep(0.01)

    return watch


def disturbed_command(bench, gpus, fault, rank, phase):
    """The pipeline of the trainer makes inference exchange messages wherever there are two GPUs."""
    width = min(gpus, 4)
    return [bench.build / "tests/cycle/disturbed_update", fault, rank, *phase, FAULT_TIMEOUT_S,
            "share" if bench.share_gpu else "", bench.backend, f"megatron:pp={width}",
            f"sglang:tp={width}"]


def disturb(bench, gpus, fault, rank, phase):
    """One update in which a rank is killed, or none; what became of it."""
    name = " ".join(filter(None, phase))
    result = {"fault": fault, "rank": rank, "phase": name, "seconds": 0.0, "failures": []}
    seen = set()
    files = shared_files()
    before = used_memory() if bench.backend == "cuda" else {}
    command = disturbed_command(bench, gpus, fault, rank, phase)
    try:
        run = bench.launch(f"{gpus}gpus-{fault}-{name.replace(' ', '-')}", 2 * gpus, command,
                           FAULT_LIMIT_S, watch_shared_files(seen))
    except TimeoutError as late:
        result["failures"].append(str(late).splitlines()[0])
        result["failures"] += files_left(files)
        return result
    result["seconds"] = run.seconds
    result["exit_code"] = run.code
    result["failures"] = tables.faults_of_disturbed(fault, rank, phase, run)
    result["failures"] += [text for text in files_left(files) if text not in result["failures"]]
    if not seen:
        result["failures"].append("saw no shared memory file of MPI: this check lost its object")
    result["failures"] += memory_left(before)
    return result


def measure_faults(bench, gpus):
    """Undisturbed once, then one rank killed in each phase; a killed one's job may take as long and
    its deadline more."""
    undisturbed = disturb(bench, gpus, "none", 0, PHASES[0])
    results = [undisturbed]
    for index, phase in enumerate(PHASES):
        result = disturb(bench, gpus, "kill", (index + 1) % (2 * gpus), phase)
        if result["seconds"] > undisturbed["seconds"] + FAULT_TIMEOUT_S:
            result["failures"].append(f"it took {result['seconds']:.1f} s, undisturbed "
                                      f"{undisturbed['seconds']:.1f} s")
        results.append(result)
    return results


def measure_group(bench, gpus, models, digests):
    """Everything but faults on so many GPUs."""
    failures = []
    settings = [setting for model in models for setting in tables.settings_of(model, gpus)]
    planned = {setting: plan_of(bench, setting) for setting in settings}
    links = measure_links(bench, gpus, failures)
    nccl = measure_nccl(bench, gpus, {setting: plan for setting, (plan, _) in planned.items()
                                      if plan}, failures)
    rows = []
    for setting, (plan, wrong) in planned.items():
        cycle, alone = None, None
        if plan:
            cycle, alone, wrong = measure_setting(bench, setting, plan, digests[setting.model])
        row = tables.figures(setting, plan, cycle, alone, nccl.get(setting.name), links)
        rows.append(row | {"failures": wrong})
    return {"gpus": gpus, "links": links, "nccl": nccl, "rows": rows, "faults": [],
            "failures": failures}


def read_arguments():
    parser = argparse.ArgumentParser(description="the cycle on several GPUs of one machine")
    parser.add_argument("build", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--gpus", help="numbers of GPUs, of 1, 2, 4 and 8; default: 2, 4 and 8, as "
                        "far as there are as many")
    parser.add_argument("--backend", choices=["cuda", "host"], default="cuda")
    parser.add_argument("--model-dense", default="preset:qwen3-8b", metavar="DIR|preset:NAME")
    parser.add_argument("--dense-layers", type=int, default=36)
    parser.add_argument("--model-moe", default="preset:qwen3-30b-a3b", metavar="DIR|preset:NAME")
    parser.add_argument("--moe-layers", type=int, default=8)
    parser.add_argument("--share-gpu", action="store_true", help="all ranks on the GPUs there are, to "
                        "try the script; its times then mean nothing")
    parser.add_argument("--without-faults", action="store_true", help="kill no ranks")
    parser.add_argument("--docs", type=pathlib.Path, metavar="FILE",
                        help="write the tables between the markers of this file, too")
    arguments = parser.parse_args()
    found = len(query_gpus(["index"])) if arguments.backend == "cuda" else 0
    words = arguments.gpus.split(",") if arguments.gpus else [
        str(count) for count in (2, 4, 8) if count <= found]
    if not words or not set(words) <= {"1", "2", "4", "8"}:
        parser.error(f"found {found} GPUs; --gpus takes 1, 2, 4 and 8, separated by commas")
    arguments.gpus = sorted(map(int, words))
    if arguments.backend == "cuda" and not arguments.share_gpu and arguments.gpus[-1] > found:
        parser.error(f"--gpus {arguments.gpus[-1]}: nvidia-smi lists {found}; --share-gpu tries the "
                     "script on fewer")
    return arguments


def failures_of(result):
    """All failures, as texts."""
    for group in result["groups"]:
        yield from group["failures"]
        for row in group["rows"]:
            yield from row["failures"]
        for fault in group["faults"]:
            yield from (f"{fault['fault']} in {fault['phase']}: {text}"
                        for text in fault["failures"])


def main():
    arguments = read_arguments()
    # Multicast over NVLink needs rights that containers often lack, and sends and receives do not
    # use it.
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.build.resolve(), arguments.out.resolve(), arguments.backend,
                  arguments.share_gpu)
    models = [tables.Model(arguments.model_dense.split("/")[-1].removeprefix("preset:"),
                           arguments.model_dense, arguments.dense_layers, False),
              tables.Model(arguments.model_moe.split("/")[-1].removeprefix("preset:"),
                           arguments.model_moe, arguments.moe_layers, True)]
    result = {"schema_version": 1, "machine": describe_machine(bench), "groups": []}
    digests, failures = {}, []
    for model in models:
        checkpoint, refused = digest_of(bench, model)
        digests[model] = {"checkpoint": checkpoint, "trained": []}
        failures += refused
    failures += touch_memory(bench, tables.settings_of(models[0], arguments.gpus[-1])[0])
    for gpus in arguments.gpus:
        result["groups"].append(measure_group(bench, gpus, models, digests))
        tables.write_results(bench.out, result)  # what is there outlives a time limit
    if not arguments.without_faults:
        result["groups"][-1]["faults"] = measure_faults(bench, arguments.gpus[-1])
    failures += failures_of(result)
    result["failures"] = failures
    tables.write_results(bench.out, result)
    if arguments.docs:
        tables.write_docs(arguments.docs, [result])
    print(tables.tables([result]))
    bench.say(f"done: {len(failures)} failures")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
