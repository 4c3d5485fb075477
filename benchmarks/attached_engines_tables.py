"""What attached_engines.py has measured, told: what does not fit together, tables in Markdown, and a plot.
Nothing here runs anything."""
import statistics
import textwrap

import one_gpu_tables

BEGIN = "<!-- attached_engines.py: begin -->"
END = "<!-- attached_engines.py: end -->"
SIDES = {"ipc": "vLLM's IPC, sleep(2)", "load": "load_weights, sleep(2)", "ours": "ours",
         "tight": "ours, tight"}


def differences(sides):
    """All sides' trainers held the same weights, and all vLLMs said the same with them."""
    found = []
    said = {side: [cycle["tokens"] for cycle in result["cycles"]] for side, result in sides.items()}
    held = {side: [cycle["digest"] for cycle in result["cycles"]] + [result["digest"]]
            for side, result in sides.items()}
    for side in list(sides)[1:]:
        first = next(iter(sides))
        if held[side] != held[first]:
            found.append(f"the trainers' weights differ: {SIDES[first]} {held[first]}, "
                         f"{SIDES[side]} {held[side]}")
        for number, (one, other) in enumerate(zip(said[first], said[side], strict=True)):
            if one != other:
                found.append(f"tokens after update {number + 1} differ: {SIDES[first]} {one}, "
                             f"{SIDES[side]} {other}")
    for side, tokens in said.items():
        if len({tuple(one) for one in tokens}) < 2:
            found.append(f"{SIDES[side]}: the tokens of all versions are the same, and prove nothing")
    return found


def seconds(value):
    if value >= 9.995:
        return f"{value:.1f} s"
    return f"{value * 1000:,.0f} ms" if value >= 0.0995 else f"{value * 1000:.1f} ms"


def spread(values):
    """Of warm cycles."""
    if not values:
        return "–"
    return f"{seconds(statistics.median(values))} ({seconds(min(values))} to {seconds(max(values))})"


def size(value):
    return "–" if value is None else f"{value / 1e9:.2f} GB"


def most(cycles, what):
    found = [cycle[what] for cycle in cycles]
    return None if None in found else max(found, default=None)


def main_table(sides):
    heads = ["what", *(f"{SIDES[side]}, {when}" for side in sides for when in ("first", "warm"))]

    def timed(name, of):
        cells = [name]
        for result in sides.values():
            found = [of(cycle) for cycle in result["cycles"]]
            cells += [seconds(found[0]), spread(found[1:])]
        return cells

    def sized(name, what):
        cells = [name]
        for result in sides.values():
            cells += [size(most(result["cycles"][part], what)) for part in (slice(1), slice(1, None))]
        return cells

    def once(name, of):
        cells = [name]
        for result in sides.values():
            cells += ["", of(result)]
        return cells

    return one_gpu_tables.table([
        heads,
        timed("from the end of the step to the first token", lambda cycle: cycle["to_first_token"]),
        timed("16 tokens right after the first", lambda cycle: cycle["more"]),
        timed("from the end of the rollouts to the trainer's forward", lambda cycle: cycle["forward"]),
        timed("the trainer's waits for its memory, all", lambda cycle: cycle["back"]),
        sized("GPU memory, most in a cycle", "peak_bytes"),
        once("GPU memory in the rollouts", lambda r: size(most(r["cycles"], "rollout_bytes"))),
        once("GPU memory used before", lambda r: size(r["idle_bytes"])),
        once("to host memory, a cycle", lambda r: size(r["moved"]["to_host"])),
        once("to the GPU, a cycle", lambda r: size(r["moved"]["to_device"])),
        once("weights written on the GPU, a cycle, at least",
             lambda r: size(r["moved"]["written_on_device"])),
        once("host memory kept for it", lambda r: size(r["host_bytes"])),
    ])


def goals_table(sides):
    """What was asked of ours for Qwen3-4B."""
    cycles = sides["ours"]["cycles"]
    warm = cycles[1:] or cycles
    goals = [
        ("to the first token, warm", 0.95, statistics.median(c["to_first_token"] for c in warm)),
        ("to the first token, first, `--warm-host-memory`", 3.0, cycles[0]["to_first_token"]),
        ("back to the trainer, warm", 1.05, statistics.median(c["forward"] for c in warm)),
    ]
    rows = [(what, f"≤ {goal:.2f} s", f"{found:.3f} s",
             "reached" if found <= goal else "**missed**") for what, goal, found in goals]
    found = most(warm, "peak_bytes")
    peers = [most(sides[side]["cycles"][1:], "peak_bytes") for side in ("ipc", "load") if side in sides]
    if found and all(peers) and peers:
        rows.append(("GPU memory, most in a warm cycle", f"< {size(min(peers))}", size(found),
                     "reached" if found < min(peers) else "**missed**"))
    return one_gpu_tables.table([("what", "goal", "reached", "verdict"), *rows])


def steps_table(sides):
    rows = []
    for side, result in sides.items():
        for name in result["cycles"][0]["steps"]:
            found = [cycle["steps"][name] for cycle in result["cycles"]]
            rows.append((SIDES[side], name, seconds(found[0]), spread(found[1:])))
        for name, found in result.get("phases", {}).items():
            rows.append((SIDES[side], f"the job: {name}", seconds(found[0]), spread(found[1:])))
    return one_gpu_tables.table([("side", "of it", "first", "warm"), *rows])


def markdown(results, plotted):
    sides = results["sides"]
    of = f"Qwen3-{results['model'].upper()}"
    if results["layers"]:
        of += f", {results['layers']} layers"
    found = results["versions"]
    vllm = next((one["vllm"] for one in sides.values()), "none")
    parts = [
        f"{results['gpu']}, {results['cores']} cores, {results['host_memory_bytes'] / 2**30:.0f} GiB of host "
        f"memory; {of}, weights {size(results['weights_bytes'])}; ours {found['ours']}, commit "
        f"{found['commit']}, driver {found['driver']}, PyTorch {found['PyTorch']}, vLLM {vllm}. A first cycle "
        f"and {results['cycles'] - 1} warm ones: median (least to most). Ours had "
        f"{results['first_step_s']:.0f} s from the attaching of both to the first hand-over. Forward and backward "
        f"allocate {size(results['weights_bytes'])} of gradients and {size(results['activation_bytes'])} of "
        f"activations."]
    if sides:
        parts += [main_table(sides), steps_table(sides)]
    parts += [f"{SIDES[side]}: {said}." for side, result in sides.items()
              for said in result.get("prepared", [])]
    if "ours" in sides and of == "Qwen3-4B" and results["backend"] == "cuda":
        parts.insert(1, goals_table(sides))
    if plotted:
        parts.append(f"![Time to the first token and back, each side, first and warm]({plotted})")
    if len(sides) > 1 and not results["failures"]:
        parts.append("All sides' trainers held the same weights, and their vLLMs said the same "
                     "tokens, version by version.")
    parts += [f"**Failed:** {one.splitlines()[0]}" for one in results["failures"]]
    return "\n\n".join(parts) + "\n"


def plot(results, path):
    """Time to the first token and back, as one_gpu_tables draws its phases, and the GPU's memory over a cycle."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "attached_engines", "svg.fonttype": "none",
                                "hatch.linewidth": 0.5, "font.size": 9})
    from matplotlib import pyplot
    spans = (("to_first_token", "to the first token"), ("forward", "to the trainer's forward"),
             ("back", "all that it waits for its memory"))
    groups = [(f"{name}, {when}", key, part) for key, name in spans
              for when, part in (("first", slice(0, 1)), ("warm", slice(1, None)))]
    width = 0.8 / len(results["sides"])
    figure, (axes, over_time) = pyplot.subplots(2, figsize=(9.5, 7), facecolor="white",
                                                height_ratios=(4, 3))
    for index, (side, result) in enumerate(results["sides"].items()):
        left = (index - (len(results["sides"]) - 1) / 2) * width
        bars = [(at + left, statistics.median(cycle[key] for cycle in result["cycles"][part]))
                for at, (_, key, part) in enumerate(groups) if result["cycles"][part]]
        axes.bar([at for at, _ in bars], [value for _, value in bars], width, label=SIDES[side],
                 color=one_gpu_tables.COLOURS[index], hatch=one_gpu_tables.HATCHES[index],
                 edgecolor="black", linewidth=0.4)
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xticks(range(len(groups)), [textwrap.fill(name, 16) for name, _, _ in groups])
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    plot_memory(over_time, results["sides"])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def plot_memory(axes, sides):
    """What is used of the GPU in each side's last cycle, from the trainer's forward to the next one."""
    for index, (side, result) in enumerate(sides.items()):
        cycle = result["cycles"][-1]
        points = [*cycle.get("memory", [])]
        if points:
            points.append((cycle["end"] - cycle["begin"], points[-1][1]))
        axes.step([at for at, _ in points], [used / 1e9 for _, used in points], where="post",
                  label=SIDES[side], color=one_gpu_tables.COLOURS[index], linewidth=1)
    axes.set_xlabel("seconds of a cycle: the trainer's step, hand-over, rollouts, take-back")
    axes.set_ylabel("GB of the GPU")
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.3)
    axes.set_axisbelow(True)
