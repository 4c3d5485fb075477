#!/usr/bin/env python3
"""Many updates in one resident job, some of which fail: its ranks must not grow.

usage: endurance.py FAULTY_JOB AWEX_COLOCATE --updates N --csv FILE [--plot FILE]
       endurance.py --csv FILE --plot FILE

An update is the commands update and resume; each FAILURE_EVERY-th has an error in between, after which another
follows. A line of the CSV tells, after each, how long both took at their clients, of every rank the
resident set, descriptors and threads, and on `cuda` what all GPUs hold. After a warm-up all must stay as they are. Without programs, an earlier
run is drawn again.
"""

import argparse
import csv
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from gpu_memory import used_gpu_bytes  # noqa: E402
from resident_job import ResidentJob, Trouble, names_rank  # noqa: E402
from sessions import signals_as_exceptions  # noqa: E402

FAILURE_EVERY = 20
MIB = 1 << 20
SETTLE_S = 2.0  # rank 0 closes a client's connection after its answer
QUANTITIES = ("rss", "descriptors", "threads")
PLACES = [("train", "trainer", "-"), ("transfer", "inference", "weights"), ("verify", "all", "weights"),
          ("commit", "all", "weights"), ("resume", "inference", "kv_cache"), ("offload", "trainer", "optimizer"),
          ("offload", "trainer", "weights")]


def usage_of(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task"))}


def settled_usage(pids, known):
    """Of all ranks; those that hold more descriptors than before get a moment to close them."""
    end = time.monotonic() + SETTLE_S
    while True:
        usages = [usage_of(pid) for pid in pids]
        grown = known and any(now["descriptors"] > then["descriptors"] for now, then in zip(usages, known))
        if not grown or time.monotonic() > end:
            return usages
        time.sleep(0.02)


class Endurance:
    def __init__(self, arguments, scratch):
        self.arguments = arguments
        self.fault_path = os.path.join(scratch, "fault")
        self.serial = 0
        self.dice = random.Random(arguments.seed)
        self.job = ResidentJob(arguments.mpiexec, [arguments.job], arguments.client, os.path.join(scratch, "job"),
                               scratch, arguments.ranks, arguments.timeout, self.fault_path,
                               backend=arguments.backend)

    def timed(self, command):
        start = time.monotonic()
        report = self.job.do(command)
        if command == "update" and not (report["versions"][-1]["committed"] and not report["poisoned"]):
            raise Trouble(f"an update has not committed: {report}")
        return time.monotonic() - start

    def fail_once(self):
        rank, place = self.dice.randrange(self.arguments.ranks), self.dice.choice(PLACES)
        self.serial += 1
        with open(self.fault_path + ".new", "w", encoding="utf-8") as file:
            print(self.serial, rank, "error", *place, 0, file=file)
        os.replace(self.fault_path + ".new", self.fault_path)
        client = self.job.ask("update")
        if client.end() != 1 or not names_rank(client.err, rank):
            raise Trouble(f"an error of rank {rank} in {place}: exit code {client.process.returncode}: {client.err}")

    def rows(self):
        """A line for each update."""
        usages = None
        with self.job:
            for number in range(1, self.arguments.updates + 1):
                fails = number % FAILURE_EVERY == 0
                if fails:
                    self.fail_once()
                row = {"update": number, "failed_before": int(fails), "update_s": self.timed("update"),
                       "resume_s": self.timed("resume")}
                usages = settled_usage(self.job.pids, usages)
                for rank, usage in enumerate(usages):
                    row.update({f"{name}_{rank}": usage[name] for name in QUANTITIES})
                if self.arguments.backend == "cuda":
                    row["gpu"] = used_gpu_bytes()
                yield {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
            if self.job.stop() != 0:
                raise Trouble("the job has not ended in order")


def ranks_of(rows):
    return sum(key.startswith("rss_") for key in rows[0])


def growth(rows, column):
    """Of a quantity, from the first fifth of the rows to their last: medians."""
    fifth = max(len(rows) // 5, 1)
    values = [row[column] for row in rows]
    return statistics.median(values[-fifth:]) - statistics.median(values[:fifth])


def judge(rows, warm_up, tolerance):
    """What has grown after the warm-up."""
    rows = rows[warm_up:]
    grown = []
    for rank, name in itertools.product(range(ranks_of(rows)), QUANTITIES):
        more = growth(rows, f"{name}_{rank}")
        if more > (tolerance if name == "rss" else 0):
            grown.append(f"rank {rank}: {name} has grown by {more} in {len(rows)} updates")
    if "gpu" in rows[0] and growth(rows, "gpu") > tolerance:
        grown.append(f"what GPUs hold has grown by {growth(rows, 'gpu')} bytes in {len(rows)} updates")
    return grown


def summary(rows, warm_up):
    rest = rows[warm_up:]
    lines = [f"{len(rows)} updates, {sum(row['failed_before'] for row in rows)} failures between them; after "
             f"{warm_up} of them:"]
    for command in ("update", "resume"):
        times = sorted(row[f"{command}_s"] for row in rest)
        lines.append(f"  {command} at its client: median {1e3 * statistics.median(times):.1f} ms, 95 % within "
                     f"{1e3 * times[int(0.95 * (len(times) - 1))]:.1f} ms, slowest {1e3 * times[-1]:.1f} ms")
    for rank in range(ranks_of(rows)):
        rss = [row[f"rss_{rank}"] / MIB for row in rest]
        counts = {name: sorted({row[f"{name}_{rank}"] for row in rest}) for name in ("descriptors", "threads")}
        lines.append(f"  rank {rank}: resident set {min(rss):.2f} to {max(rss):.2f} MiB, grown by "
                     f"{growth(rest, f'rss_{rank}') / MIB:.3f}; descriptors {counts['descriptors']}, threads "
                     f"{counts['threads']}")
    if "gpu" in rest[0]:
        held = [row["gpu"] / MIB for row in rest]
        lines.append(f"  GPUs: {min(held):.2f} to {max(held):.2f} MiB, grown by {growth(rest, 'gpu') / MIB:.3f}")
    return "\n".join(lines)


def plot(rows, path):
    """Resident sets above, descriptors and threads below. White ground, so that it reads on dark pages; line
    styles, so that it reads without colours; the same bytes for the same figures."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "resident_memory", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9.5, 4.5), facecolor="white")
    updates = [row["update"] for row in rows]
    styles = ["-", "--", "-.", ":"]
    for rank in range(ranks_of(rows)):
        style = {"linestyle": styles[rank % len(styles)], "linewidth": 1}
        above.plot(updates, [row[f"rss_{rank}"] / MIB for row in rows], label=f"rank {rank}", **style)
        for name, colour in (("descriptors", "#08519c"), ("threads", "#d94801")):
            below.plot(updates, [row[f"{name}_{rank}"] for row in rows], color=colour,
                       label=f"{name}, rank {rank}", **style)
    for row in rows:
        if row["failed_before"]:
            above.axvline(row["update"], ymax=0.04, color="black", linewidth=0.6)
    above.set_ylabel("resident set, MiB")
    below.set_ylabel("count")
    below.set_xlabel("updates; marks above the axis: one failed before")
    for axes in (above, below):
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)
        axes.grid(axis="y", linewidth=0.3)
        axes.legend(ncols=2, fontsize=7, loc="center right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def measure(arguments):
    """Rows of a run, which are written as they come."""
    rows = []
    scratch = tempfile.mkdtemp(prefix="awex-endurance-")
    try:
        with signals_as_exceptions(), open(arguments.csv or os.devnull, "w", encoding="utf-8") as file:
            writer = None
            for row in Endurance(arguments, scratch).rows():
                writer = writer or csv.DictWriter(file, list(row), lineterminator="\n")
                if not rows:
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                rows.append(row)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return rows


def read(path):
    with open(path, encoding="utf-8") as file:
        return [{key: float(value) if key.endswith("_s") else int(value) for key, value in row.items()}
                for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("job", nargs="?", help="faulty_job")
    parser.add_argument("client", nargs="?", help="awex-colocate")
    parser.add_argument("--mpiexec", default="mpirun")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, help="updates that are not judged; a tenth by default")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--backend", choices=["host", "cuda"], default="host")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1.0, help="MiB that a resident set, and what GPUs hold, may grow by")
    parser.add_argument("--csv")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    rows = measure(arguments) if arguments.client else read(arguments.csv)
    warm_up = len(rows) // 10 if arguments.warm_up is None else arguments.warm_up
    print(summary(rows, warm_up), flush=True)
    if arguments.plot:
        plot(rows, arguments.plot)
    grown = judge(rows, warm_up, arguments.tolerance * MIB)
    print(*grown, sep="\n")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
