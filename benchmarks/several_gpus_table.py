#!/usr/bin/env python3
"""What runs on several GPUs amount to: figures from their reports, and the tables of results.

usage: several_gpus_table.py [--docs FILE] RESULT.json [RESULT.json ...]

Writes the tables of results that several_gpus.py has written to stdout, or between the markers in
the Markdown file FILE. Nothing here runs anything.
"""
import argparse
import dataclasses
import json
import pathlib
import re
import statistics
import sys

import markers

BEGIN = "<!-- several GPUs: begin, written by benchmarks/several_gpus.py -->"
END = "<!-- several GPUs: end -->"
GOAL_OF_NCCL = 0.9
LEAST_REMOTE_SHARE = 0.1  # with less, a transfer's time says nothing about what moves between GPUs


@dataclasses.dataclass(frozen=True)
class Model:
    label: str
    source: str  # as --model takes it
    layers: int
    has_experts: bool


@dataclasses.dataclass(frozen=True)
class Setting:
    letter: str
    model: Model
    gpus: int
    trainer: str
    inference: str
    optimizer: str

    @property
    def name(self):
        kind = "moe" if self.model.has_experts else "dense"
        return f"{self.gpus}gpus-{kind}-{self.letter}"

    @property
    def job(self):
        """What `plan` and `update` are both asked for."""
        return ["--model", self.model.source, "--layers", str(self.model.layers),
                "--trainer", self.trainer, "--inference", self.inference,
                "--optimizer", self.optimizer]


def pipeline_spec(layers, stages):
    """A Megatron pipeline as even as it can be: where layers do not divide, both ends differ from
    the stages between them."""
    if layers % stages == 0:
        return f"megatron:pp={stages}"
    ends = [end for end in range(1, layers // 2)
            if stages > 2 and (layers - 2 * end) % (stages - 2) == 0 and layers > 2 * end]
    if not ends:
        raise ValueError(f"{layers} layers cannot be spread over {stages} stages of a pipeline")
    end = min(ends, key=lambda size: abs(size - layers / stages))
    return f"megatron:pp={stages},first={end},last={end}"


def settings_of(model, gpus):
    """The settings of one model on so many GPUs; a single GPU has nothing to spread.

    In (b) every trainer rank holds the whole model. Megatron's plain data parallelism would also
    repeat the optimizer's state, 115 GB a GPU and 917 GB of host memory on 8 GPUs for Qwen3-8B,
    which no such machine has: the trainer holds weights alone there.
    """
    inference = f"sglang:tp={gpus}"
    same = Setting("a", model, gpus, f"megatron:tp={gpus}", inference, "adamw")
    if gpus == 1:
        return [same]
    settings = [same,
                Setting("b", model, gpus, "megatron:tp=1", inference, "none"),
                Setting("c", model, gpus, pipeline_spec(model.layers, gpus), inference, "adamw")]
    if model.has_experts:
        settings.append(Setting("d", model, gpus, f"megatron:tp=1,ep={gpus},etp=1", inference,
                                "adamw"))
    return settings


def exchanged(matrix):
    """The bytes of a plan's matrix that travel. A single GPU sends to itself, to have any."""
    if len(matrix) == 1:
        return matrix
    return [[0 if source == target else size for target, size in enumerate(row)]
            for source, row in enumerate(matrix)]


def phases_of(version, phase, role=None, tag=None):
    return [p for p in version["phases"] if p["phase"] == phase and role in (None, p["role"])
            and tag in (None, p["tag"])]


def warm_versions(report):
    """All but the first, which takes memory and opens what later ones keep."""
    return report["versions"][1:]


def median_seconds(report, phase, role=None):
    """Of one phase of the warm versions; None when there is none."""
    times = [p["seconds"] for version in warm_versions(report)
             for p in phases_of(version, phase, role)]
    return statistics.median(times) if times else None


def offload_rate(report):
    """Median bytes per second of all GPUs' offloads of the largest tag, None without any."""
    phases = [max(phases_of(version, "offload"), key=lambda p: p["bytes"], default=None)
              for version in warm_versions(report)]
    rates = [p["bytes"] / p["seconds"] for p in phases if p is not None and p["seconds"] > 0]
    return statistics.median(rates) if rates else None


def cycle_seconds(report):
    """Median over the warm versions from train to train: without the training step itself."""
    times = [version["seconds"] - sum(p["seconds"] for p in phases_of(version, "train"))
             for version in warm_versions(report)]
    return statistics.median(times) if times else None


def link_seconds(report, links):
    """What the offloaded bytes need on links of which all are in use: once there, once back."""
    versions = warm_versions(report)
    if not versions:
        return None
    there = sum(p["bytes"] for p in phases_of(versions[-1], "offload", "trainer"))
    back = sum(p["bytes"] for p in phases_of(versions[-1], "resume", "trainer"))
    return (there / links["device_to_host"]["best_bytes_per_s"]
            + back / links["host_to_device"]["best_bytes_per_s"])


def faults_of_update(report, plan, first_digest, expected_digests):
    """What is wrong with an update, as texts. `expected_digests` are those of all versions: of the
    same training in another layout, or the checkpoint's throughout where nothing trains; empty
    when there is none to compare with. `first_digest` is the checkpoint's, None if it failed."""
    faults = []
    if not report["ok"]:
        faults.append(f"failed: {report['error']['message']}")
        return faults
    for key in ("local_bytes", "remote_bytes"):
        if report["plan"][key] != plan["plan"][key]:
            faults.append(f"{key}: {report['plan'][key]}, but plan says {plan['plan'][key]}")
    moved = plan["plan"]["local_bytes"] + plan["plan"]["remote_bytes"]
    digests = []
    for version in report["versions"]:
        number, digest = version["version"], version["digest"]
        if not version["committed"]:
            faults.append(f"version {number} is not committed")
        if digest is None:
            faults.append(f"version {number} has no digest")
            continue
        digests.append(digest["model"])
        if digest["mismatched"] != 0:
            faults.append(f"version {number}: {digest['mismatched']} tensors differ")
        received = sum(p["bytes"] for p in phases_of(version, "transfer"))
        if received != moved:
            faults.append(f"version {number} moved {received} bytes, but plan says {moved}")
    if first_digest is None:
        faults.append("the checkpoint's digest is unknown")
    elif digests[:1] != [first_digest]:
        faults.append(f"version 1 has {digests[:1]}, the checkpoint {first_digest}")
    if expected_digests and digests != expected_digests:
        faults.append(f"digests {digests}, but {expected_digests} are expected")
    return faults


def faults_of_disturbed(fault, rank, phase, run):
    """What is wrong with a run in which `rank` was to be killed in `phase`, or nobody."""
    code, message = {"none": (0, None),
                     "kill": (137, rf"rank {rank} .* is gone")}[fault]
    faults = []
    if run.code != code:
        faults.append(f"exit code {run.code} instead of {code}")
    if message and not re.search(message, run.stderr):
        faults.append(f"stderr does not say that rank {rank} is gone")
    if f"phase {' '.join(phase)}" not in run.stdout:
        faults.append("the phase did not come")
    return faults + [f"{what} is left" for what in run.left]


def ratio(part, whole):
    return part / whole if part is not None and whole else None


def figures(setting, plan, update, transfer, nccl, links):
    """The figures of a setting. `update` is a whole cycle, `transfer` the transfer alone, `nccl`
    what plain NCCL needs for the same bytes between the same GPUs; None for what has failed or was
    not measured."""
    row = {"gpus": setting.gpus, "model": setting.model.label, "layers": setting.model.layers,
           "setting": setting.letter, "trainer": setting.trainer, "inference": setting.inference,
           "optimizer": setting.optimizer, "local_bytes": None, "remote_bytes": None,
           "transfer_seconds": None, "nccl_seconds": None, "remote_bytes_per_s_per_gpu": None,
           "nccl_bytes_per_s_per_gpu": None, "remote_ratio": None, "offload_bytes_per_s": None,
           "offload_ratio": None, "cycle_seconds": None, "link_seconds": None, "cycle_ratio": None}
    if plan:
        row |= {key: plan["plan"][key] for key in ("local_bytes", "remote_bytes")}
    if transfer:
        row["transfer_seconds"] = median_seconds(transfer, "transfer")
    if nccl:
        row["nccl_seconds"] = nccl["best_seconds"]
    moved = (row["local_bytes"] or 0) + (row["remote_bytes"] or 0)
    if row["remote_bytes"] and row["remote_bytes"] >= LEAST_REMOTE_SHARE * moved:
        per_gpu = row["remote_bytes"] / setting.gpus
        row |= {"remote_bytes_per_s_per_gpu": ratio(per_gpu, row["transfer_seconds"]),
                "nccl_bytes_per_s_per_gpu": ratio(per_gpu, row["nccl_seconds"]),
                "remote_ratio": ratio(row["nccl_seconds"], row["transfer_seconds"])}
    if update:
        row |= {"offload_bytes_per_s": offload_rate(update),
                "cycle_seconds": cycle_seconds(update)}
    if update and links:
        row["offload_ratio"] = ratio(row["offload_bytes_per_s"],
                                     links["device_to_host"]["best_bytes_per_s"])
        row["link_seconds"] = link_seconds(update, links)
        row["cycle_ratio"] = ratio(row["link_seconds"], row["cycle_seconds"])
    return row


def number(value, scale=1.0, digits=1):
    return "–" if value is None else f"{value * scale:,.{digits}f}"


def markdown_table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def results_table(rows):
    heads = ["GPUs", "model", "trainer", "inference", "committed, digests and bytes as planned",
             "local", "remote", "transfer alone", "remote, a GPU", "NCCL, the same bytes", "ratio",
             "offload, all GPUs", "of the links", "cycle", "link time", "ratio"]
    units = ["", "", "", "", "", "GB", "GB", "ms", "GB/s", "GB/s", f"goal {GOAL_OF_NCCL}", "GB/s",
             "", "s", "s", ""]
    lines = [units]
    for row in rows:
        inference = row["inference"] + (" (no optimizer)" if row["optimizer"] == "none" else "")
        lines.append([
            str(row["gpus"]), f"{row['model']}, {row['layers']} layers",
            f"({row['setting']}) `{row['trainer']}`", inference,
            "yes" if not row["failures"] else "**no**: " + "; ".join(row["failures"]),
            number(row["local_bytes"], 1e-9, 2), number(row["remote_bytes"], 1e-9, 2),
            number(row["transfer_seconds"], 1e3, 2),
            number(row["remote_bytes_per_s_per_gpu"], 1e-9),
            number(row["nccl_bytes_per_s_per_gpu"], 1e-9), number(row["remote_ratio"], digits=3),
            number(row["offload_bytes_per_s"], 1e-9), number(row["offload_ratio"], digits=3),
            number(row["cycle_seconds"], digits=3), number(row["link_seconds"], digits=3),
            number(row["cycle_ratio"], digits=3)])
    return markdown_table(heads, [[cell.replace("|", "\\|") for cell in line] for line in lines])


def nodes_text(nodes):
    """"node 0: 1.07 GB"; what the kernel does not tell is unknown."""
    return ", ".join(f"node {node}: {size / 1e9:.2f} GB" for node, size in nodes.items()) or "unknown"


def links_table(groups):
    rows = []
    for group in groups:
        links = group["links"]
        if links is None:
            continue
        placed = [f"GPU {d['index']} ({'node ' + str(d['numa_node']) if d['numa_node'] is not None else 'no node'})"
                  f" {nodes_text(d['host_bytes_by_numa_node'])}" for d in links["devices"]]
        rows.append([str(group["gpus"]),
                     number(links["device_to_host"]["best_bytes_per_s"], 1e-9),
                     number(links["host_to_device"]["best_bytes_per_s"], 1e-9), "; ".join(placed)])
    return markdown_table(["GPUs at once", "to host memory, GB/s in all", "back, GB/s in all",
                           "NUMA node of each GPU, and where its pinned memory lies"], rows)


def faults_text(groups):
    """A line for each number of GPUs on which ranks were killed."""
    lines = []
    for group in groups:
        faults = group["faults"]
        if not faults:
            continue
        bad = [f for f in faults if f["failures"]]
        killed = [f for f in faults if f["fault"] == "kill"]
        slowest = max(f["seconds"] for f in faults)
        lines.append(f"{group['gpus']} GPUs: one of {2 * group['gpus']} ranks killed in each of "
                     f"{len(killed)} phases; {len(faults) - len(bad)} of {len(faults)} runs ended "
                     f"as they should, the slowest after {slowest:.1f} s.")
        lines += [f"  **{f['fault']} of rank {f['rank']} in {f['phase']}**: "
                  f"{'; '.join(f['failures'])}" for f in bad]
    return "".join(line + "\n" for line in lines)


def tables(results):
    groups = sorted((group for result in results for group in result["groups"]),
                    key=lambda group: group["gpus"])
    rows = [row for group in groups for row in group["rows"]]
    machines = sorted({result["machine"]["name"] for result in results})
    parts = [f"Measured on: {'; '.join(machines)}.\n", results_table(rows), links_table(groups)]
    faults = faults_text(groups)
    return "\n".join(parts + ([faults] if faults else []))


def write_results(folder, result):
    (folder / "several_gpus.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "several_gpus.md").write_text(tables([result]), encoding="utf-8")


def write_docs(path, results):
    path.write_text(markers.replace_between(path.read_text(encoding="utf-8"), BEGIN, END,
                                            tables(results)), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="the tables of results of several_gpus.py")
    parser.add_argument("--docs", type=pathlib.Path, metavar="FILE")
    parser.add_argument("results", nargs="+", type=pathlib.Path, metavar="RESULT.json")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    if arguments.docs:
        write_docs(arguments.docs, results)
    else:
        print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
