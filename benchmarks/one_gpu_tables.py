"""Goals and peers of one GPU as tables and a plot, from what one_gpu.py measured.

Everything here is a pure function of one_gpu.json. A figure that the run lacks is "not measured", a
peer that failed shows its error: nothing is filled in.
"""
import re
import statistics
import textwrap

GB = 1e9
MIB = 1 << 20
NOT_MEASURED = "not measured"
BEGIN = "<!-- one_gpu.py: begin -->"
END = "<!-- one_gpu.py: end -->"
KERNEL_LINE = re.compile(
    r"^(?P<set>\S.*?)\s{2,}(?P<way>\S.*?)\s+\d+\s+(?P<ms>[\d.]+)\s+[\d.]+\s+(?P<ratio>[\d.]+)$")


class Missing(Exception):
    """What a figure is made of was not measured."""


def parse_kernels(text):
    """{set: {way: {"seconds", "ratio"}}} of kernel_bench's lines; ratios are to one cudaMemcpy."""
    sets = {}
    for line in text.splitlines():
        match = KERNEL_LINE.match(line.rstrip())
        if match:
            sets.setdefault(match["set"], {})[match["way"]] = {
                "seconds": float(match["ms"]) / 1e3, "ratio": float(match["ratio"])}
    return sets


# ---- What the reports say

def find(version, phase, role, tag=None):
    for one in version["phases"]:
        if (one["phase"], one["role"], one["tag"]) == (phase, role, tag):
            return one
    return None


def need(version, phase, role, tag=None):
    found = find(version, phase, role, tag)
    if found is None:
        raise Missing(f"no phase {phase} {role} {tag or ''}".strip())
    return found


def covered_seconds(phases):
    """The time in which at least one of the phases runs."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((p["start_s"], p["start_s"] + p["seconds"]) for p in phases):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def limit_seconds(phase):
    """What the phase's bytes would take at its link's rate, measured in the same run."""
    if not phase["limit_bytes_per_s"]:
        raise Missing(f"no limit for {phase['phase']}")
    return phase["bytes"] / phase["limit_bytes_per_s"]


class Runs:
    """The reports of one way of running ours, one a round."""

    def __init__(self, results, name):
        self.reports = [one[name] for one in results["ours"] if name in one]
        self.name = name

    def versions(self, first):
        versions = [v for report in self.reports
                    for v in (report["versions"][:1] if first else report["versions"][1:])]
        if not versions:
            raise Missing(f"no run {self.name}")
        return versions

    def median(self, figure, first=False):
        return statistics.median(figure(version) for version in self.versions(first))

    def seconds(self, phase, role, tag, first=False):
        return self.median(lambda v: need(v, phase, role, tag)["seconds"], first)

    def ratio(self, phase, role, tag, first=False):
        def of(version):
            one = need(version, phase, role, tag)
            return limit_seconds(one) / one["seconds"]
        return self.median(of, first)

    def rate(self, phase, role, tag, first=False):
        def of(version):
            one = need(version, phase, role, tag)
            return one["bytes"] / one["seconds"]
        return self.median(of, first)


def proven_transfer_seconds(version):
    """Of the transfer with whatever proves it in phases of its own: comparing digests proves nothing
    unless the trainer has taken its own."""
    proof = [one for one in version["phases"]
             if one["phase"] == "digest" and one["tag"] == "weights"]
    return covered_seconds([need(version, "transfer", "inference", "weights"), *proof])


def whole_transfer_seconds(version):
    """Of the proven transfer with the opening and closing of its handles and the commit."""
    return proven_transfer_seconds(version) + sum(
        one["seconds"] for one in version["phases"]
        if one["phase"] in ("map", "unmap", "verify", "commit")
        and one["role"] in ("inference", "all") and one["tag"] == "weights")


def proven_transfer_ratio(version):
    transfer = need(version, "transfer", "inference", "weights")
    return limit_seconds(transfer) / proven_transfer_seconds(version)


def crossing_seconds(version):
    """What all bytes that cross the link in one cycle take at the link's rate."""
    return sum(limit_seconds(need(version, phase, "trainer", tag))
               for phase in ("offload", "resume") for tag in tags_of(version))


def tags_of(version):
    return [tag for tag in ("optimizer", "weights") if find(version, "offload", "trainer", tag)]


def cycle_ratio(version, with_train):
    train = find(version, "train", "trainer")
    seconds = version["seconds"] - (0 if with_train or not train else train["seconds"])
    return crossing_seconds(version) / seconds


def kv_cache_after(version):
    """Seconds from the start of a version to a KV cache that is usable."""
    start = min(one["start_s"] for one in version["phases"])
    kv_cache = need(version, "resume", "inference", "kv_cache")
    return kv_cache["start_s"] + kv_cache["seconds"] - start


# ---- Goals

def kernel_ratio(results, set_name, ways):
    """The slowest of the ways, median over the rounds."""
    rounds = []
    for one in results["ours"]:
        ways_of = parse_kernels(one.get("kernels", "")).get(set_name, {})
        if all(way in ways_of for way in ways):
            rounds.append(min(ways_of[way]["ratio"] for way in ways))
    if not rounds:
        raise Missing(f"no line '{ways[0]}' of kernel_bench for {set_name}")
    return statistics.median(rounds)


def excess_bytes(results, name):
    """Device memory at the peak of a transfer above the weights of both roles."""
    reports = Runs(results, name).reports
    if not reports or any(r["memory"]["device_peak_bytes"] is None for r in reports):
        raise Missing(f"no run {name}")
    return max(r["memory"]["device_peak_bytes"] - 2 * r["model"]["bytes"] for r in reports)


def at_least(bound):
    return f"≥ {bound:g}", lambda ratio: ratio >= bound, lambda ratio: f"{ratio:.3f}"


def at_most(bound, unit, scale):
    digits = 3 if bound < 10 else 1
    return (f"≤ {bound:g} {unit}", lambda value: value * scale <= bound,
            lambda value: f"{value * scale:.{digits}f} {unit}")


def cold_rate():
    return "≥ 20 GB/s", lambda rate: rate >= 20 * GB, lambda rate: f"{rate / GB:.1f} GB/s"


def without_goal():
    return "–", None, lambda ratio: f"{ratio:.3f}"


def seconds_without_goal():
    return "–", None, lambda seconds: f"{seconds:.3f} s"


def kernel_goals(results, name, kernel_set):
    """The lines of one of kernel_bench's sets."""
    both = ("copy, whole tensors", "copy, half columns")
    return [
        (f"{name}: copy kernel against one cudaMemcpy", at_least(0.98),
         lambda: kernel_ratio(results, kernel_set, both)),
        (f"{name}: copy kernel with digests of both sides", at_least(0.63),
         lambda: kernel_ratio(results, kernel_set, ("copy + digests of both sides",))),
    ]


def transfer_goals(results, name, runs):
    """The lines of one model; `runs` maps the kinds of runs to their names."""
    bare, proven = Runs(results, runs["verify off"]), Runs(results, runs["digest"])
    where = ("inference", "weights")

    def beyond_copy(version):
        one = need(version, "transfer", *where)
        return one["seconds"] - limit_seconds(one)
    return [
        (f"{name}: transfer phase beyond one cudaMemcpy, `--verify off`", at_most(1, "ms", 1e3),
         lambda: bare.median(beyond_copy)),
        (f"{name}: transfer phase against one cudaMemcpy, `--verify off`", without_goal(),
         lambda: bare.ratio("transfer", *where)),
        (f"{name}: transfer with digests of both sides, end to end", at_least(0.63),
         lambda: proven.median(proven_transfer_ratio)),
        (f"{name}: device memory above both roles' weights in a transfer",
         at_most(64, "MiB", 1 / MIB), lambda: excess_bytes(results, runs["transfer"])),
    ]


def memory_goals(results):
    usual, warmed = Runs(results, "update"), Runs(results, "warm-host-memory")
    lines = []
    for phase, bound in (("offload", 0.98), ("resume", 0.975)):
        for tag in ("optimizer", "weights"):
            lines.append((f"{phase} {tag}, warm, against the pinned link", at_least(bound),
                          lambda p=phase, t=tag: usual.ratio(p, "trainer", t)))
    for tag in ("optimizer", "weights"):
        lines.append((f"offload {tag}, first", cold_rate(),
                      lambda t=tag: usual.rate("offload", "trainer", t, first=True)))
        lines.append((f"offload {tag}, first, `--warm-host-memory`, against the link",
                      at_least(0.95),
                      lambda t=tag: warmed.ratio("offload", "trainer", t, first=True)))
    for phase, bound in (("discard", 4), ("resume", 1.5)):
        lines.append((f"{phase} of the KV cache", at_most(bound, "ms", 1e3),
                      lambda p=phase: usual.seconds(p, "inference", "kv_cache")))
    return lines


def steadiness(results, direction):
    """The median of plain copies of the same size against the best of them: what else uses the
    host's memory and links takes from everybody."""
    links = [one["links"][direction] for one in results["ours"] if "links" in one]
    if not links:
        raise Missing("no run of all_links")
    return statistics.median(one["median_bytes_per_s"] / one["best_bytes_per_s"] for one in links)


def link_lines(results):
    return [(f"plain copies of 4 GiB, {direction.replace('_', ' ')}: median against best",
             without_goal(), lambda d=direction: steadiness(results, d))
            for direction in ("device_to_host", "host_to_device")]


def cycle_goals(results):
    lines = []
    for name, label in (("update", "digests"), ("verify-off", "`--verify off`")):
        runs = Runs(results, name)
        lines += [
            (f"cycle without the training step, warm, against the link, {label}", at_least(0.95),
             lambda r=runs: r.median(lambda v: cycle_ratio(v, with_train=False))),
            (f"cycle with the training step, warm, against the link, {label}", without_goal(),
             lambda r=runs: r.median(lambda v: cycle_ratio(v, with_train=True)))]
    lines += [
        ("from the end of training to a KV cache that is usable", seconds_without_goal(),
         lambda: Runs(results, "update").median(kv_cache_after)),
        ("an update that moves next to nothing, 4 ranks on `host`", at_most(1, "ms", 1e3),
         lambda: Runs(results, "control").median(lambda v: v["seconds"]))]
    return lines


def goals(results):
    """(what, goal, reached, verdict) for every goal that one GPU can show."""
    dense = {"digest": "update", "verify off": "verify-off", "transfer": "transfer"}
    experts = {"digest": "experts", "verify off": "experts-verify-off",
               "transfer": "experts-transfer"}
    model, half = results["model"].removeprefix("preset:"), "half of qwen3-30b-a3b"
    # kernel_bench has sets of these two models, whichever was measured.
    kernels = kernel_goals(results, model, "Qwen3-4B") if model == "qwen3-4b" else []
    lines = [*kernels, *transfer_goals(results, model, dense),
             *kernel_goals(results, half, "half of 30B's experts"),
             *transfer_goals(results, half, experts), *link_lines(results),
             *memory_goals(results), *cycle_goals(results)]
    rows = []
    for what, (goal, holds, show), figure in lines:
        try:
            value = figure()
        except Missing:
            rows.append((what, goal, NOT_MEASURED, "–"))
            continue
        verdict = "–" if holds is None else "reached" if holds(value) else "**missed**"
        rows.append((what, goal, show(value), verdict))
    return rows


# ---- Peers

TRANSFER_ALONE = "transfer"  # ours; a peer's transfer cannot be told from what it includes
WHOLE_TRANSFER = "transfer with handles and proof"
BEFORE_TRANSFER = [("offload", "trainer", "optimizer"), ("offload", "trainer", "weights")]
AFTER_TRANSFER = [("resume", "trainer", "weights"), ("resume", "trainer", "optimizer"),
                  ("discard", "inference", "kv_cache"), ("resume", "inference", "kv_cache")]


def peer_cycles(results, peer, mode=None):
    """[cycle] of each run of a peer: seconds by phase; empty if it did not run."""
    runs = [one for one in results["peers"].get(peer, []) if "error" not in one]
    if mode:
        return [run[mode]["cycles"] for run in runs]
    return [[cycle["seconds"] for cycle in run["cycles"]] for run in runs]


def peer_seconds(cycles_of_runs, key, first):
    values = [cycle[key] for cycles in cycles_of_runs
              for cycle in (cycles[:1] if first else cycles[1:]) if key in cycle]
    return statistics.median(values) if values else None


def our_seconds(results, figure, first):
    try:
        return Runs(results, "update").median(figure, first)
    except Missing:
        return None


def phase_seconds(phase, role, tag):
    return lambda version: need(version, phase, role, tag)["seconds"]


def compared():
    """(name, figure of ours, key of the peers or None) in the order of a cycle."""
    def same(phases):
        return [(f"{phase} {tag}", phase_seconds(phase, role, tag), f"{phase} {tag}")
                for phase, role, tag in phases]
    return [*same(BEFORE_TRANSFER),
            (TRANSFER_ALONE, phase_seconds("transfer", "inference", "weights"), None),
            (WHOLE_TRANSFER, whole_transfer_seconds, "transfer"), *same(AFTER_TRANSFER)]


def times(results):
    """[(phase, {system: seconds or None})] in the order of a cycle."""
    awex = peer_cycles(results, "awex")
    plain = peer_cycles(results, "torch_memory_saver", "default")
    kept = peer_cycles(results, "torch_memory_saver", "retained")
    rows = []
    for name, figure, key in compared():
        rows.append((name, {
            "ours, first": our_seconds(results, figure, first=True),
            "ours, warm": our_seconds(results, figure, first=False),
            "Awex, first": peer_seconds(awex, key, first=True),
            "Awex, warm": peer_seconds(awex, key, first=False),
            "torch_memory_saver, default": peer_seconds(plain, key, first=True),
            "torch_memory_saver, retained": peer_seconds(kept, key, first=False)}))
    return rows


def show_seconds(seconds):
    if seconds is None:
        return "–"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def factor(systems):
    """How many times longer the faster peer takes than ours, both warm."""
    peers = [systems[name] for name in ("Awex, warm", "torch_memory_saver, retained")
             if systems[name]]
    if not peers or not systems["ours, warm"]:
        return "–"
    return f"{min(peers) / systems['ours, warm']:.2f}"


def trainer_peak_row(results):
    """Peak memory of the trainer in the transfer, in multiples of its weights."""
    row = {"ours, first": None}
    reports = Runs(results, "transfer").reports
    if reports:
        entry = next(e for e in reports[0]["memory"]["by_role_and_tag"]
                     if (e["role"], e["tag"]) == ("trainer", "weights"))
        row["ours, first"] = entry["device_peak_bytes"] / reports[0]["model"]["bytes"]
    peaks = [cycle["trainer_peak_bytes"] / run["bytes"]["weights"]
             for run in results["peers"].get("awex", []) if "error" not in run
             for cycle in run["cycles"]]
    return row["ours, first"], max(peaks, default=None)


def peers(results):
    """Rows of the table of peers, header first."""
    systems = list(times(results)[0][1])
    rows = [["phase", *systems, "faster peer / ours, warm"]]
    for phase, values in times(results):
        rows.append([phase, *(show_seconds(values[name]) for name in systems), factor(values)])
    awex = peer_cycles(results, "awex")
    rows.append(["of the transfer: applying", "–", "–",
                 show_seconds(peer_seconds(awex, "apply", first=True)),
                 show_seconds(peer_seconds(awex, "apply", first=False)), "–", "–", "–"])
    ours, theirs = trainer_peak_row(results)
    rows.append(["trainer's peak memory in the transfer, × W",
                 *(f"{value:.2f}" if value else "–" for value in (ours, ours, theirs, theirs)),
                 "–", "–", f"{theirs / ours:.2f}" if ours and theirs else "–"])
    return rows


def peer_notes(results):
    """One sentence for each peer that has no figures, with its error."""
    notes = []
    for peer in ("awex", "torch_memory_saver"):
        runs = results["peers"].get(peer, [])
        if not runs:
            notes.append(f"{peer}: not measured.")
        notes += [f"{peer}: {run['error']}" for run in runs if "error" in run]
    return notes


# ---- Text

def table(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return "\n".join(lines)


def describe(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (f"{results['gpu']}, {results['cores']} cores, "
            f"{results['host_memory_bytes'] / (1 << 30):.0f} GiB of host memory; {versions}. "
            f"Rounds of ours: {len(results['ours'])}; medians.")


def markdown(results, plot):
    """Both tables; `plot` is where the picture lies, seen from the text."""
    parts = [describe(results),
             table([["what", "goal", "reached", "verdict"], *map(list, goals(results))]),
             table(peers(results))]
    notes = peer_notes(results)
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    if plot:
        parts.append(f"![Time of each phase, ours and peers, logarithmic]({plot})")
    return "\n\n".join(parts) + "\n"


# ---- Plot

HATCHES = ["", "", "//", "//", r"\\", r"\\"]
COLOURS = ["#9ecae1", "#08519c", "#fdd0a2", "#d94801", "#d9d9d9", "#636363"]


def plot(results, path):
    """Time per phase, logarithmic. White ground, so that it reads on dark pages; hatches, so that
    it reads without colours; the same bytes for the same figures."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "one_gpu", "svg.fonttype": "none",
                                "hatch.linewidth": 0.5, "font.size": 9})
    from matplotlib import pyplot
    rows = [row for row in times(results) if row[0] != TRANSFER_ALONE]
    systems = list(rows[0][1])
    width = 0.8 / len(systems)
    figure, axes = pyplot.subplots(figsize=(9.5, 4), facecolor="white")
    for index, system in enumerate(systems):
        bars = [(at, values[system]) for at, (_, values) in enumerate(rows) if values[system]]
        if bars:
            axes.bar([at + (index - (len(systems) - 1) / 2) * width for at, _ in bars],
                     [seconds for _, seconds in bars], width, label=system, color=COLOURS[index],
                     hatch=HATCHES[index], edgecolor="black", linewidth=0.4)
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xticks(range(len(rows)), [textwrap.fill(name, 13) for name, _ in rows])
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)
