#!/usr/bin/env python3
"""A rank that is killed, stopped, fails, or finds damaged memory in each phase of an update."""

import argparse
import os
import random
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import judge_cases, judged_run, unlike  # noqa: E402  pylint: disable=wrong-import-position

TIMEOUT_S = 40.0  # what comes well before it was not found by waiting
STOPPED_TIMEOUT_S = 3.0  # it passes, where a rank is stopped
LIMIT_S = 120.0  # of a whole run: mpirun's start and end take their time on a machine with more to do
RANKS = 4  # ranks 0 and 1 are trainers, 2 and 3 inference

PHASES = [
    ("digest", "trainer", "weights"),
    ("offload", "trainer", "optimizer"),
    ("resume", "inference", "weights"),
    ("transfer", "inference", "weights"),
    ("unmap", "inference", "weights"),
    ("verify", "all", "weights"),
    ("commit", "all", "weights"),
    ("offload", "trainer", "weights"),
    ("resume", "inference", "kv_cache"),
    ("discard", "inference", "kv_cache"),
    ("discard", "inference", "weights"),
    ("resume", "trainer", "optimizer"),
    ("resume", "trainer", "weights"),
    ("map", "all", "weights"),
    ("train", "trainer", ""),
]

# (fault, rank, phase, exit code, pattern on stderr, pattern on stdout). Whose an error is: of the rank
# that holds wrong bytes, whoever finds them, and of nobody where digests cannot tell. The fault "damage-full" is
# damage under --verify full, "kill-warm" a kill under --warm-host-memory, "kill-peer" one under --exchange peer.
CASES = [("none", 0, PHASES[0], 0, None, None)]
# The first phase begins while host memory is still being prepared, or has just been.
CASES += [
    ("none-warm", 0, PHASES[0], 0, None, None),
    ("kill-warm", 1, PHASES[0], 137, r"rank 1 .* is gone", None),
    ("stop-warm", 0, PHASES[1], 4, r"rank 0 \(.*\)", r"reported: code 4"),
    ("throw-warm", 1, PHASES[0], 1, r"rank 1 .*a fault on purpose", r"reported: code 1"),
    ("damage-warm", 0, ("resume", "trainer", "weights"), 3,
     r"rank 0 .*is not what it was before it was offloaded", r"reported: code 3"),
]
for index, phase in enumerate(PHASES):
    # Every fault meets trainers and inference ranks, rank 0 and others.
    CASES.append(("kill", (index + 1) % RANKS, phase, 137, r"rank \d .* is gone", None))
    CASES.append(("stop", (index + 2) % RANKS, phase, 4,
                  rf"rank {(index + 2) % RANKS} \(.*\)", r"reported: code 4"))
    no_digest_yet = phase[0] in ("digest", "transfer", "verify")
    CASES.append(("throw", index % RANKS, phase, 1, rf"rank {index % RANKS} .*a fault on purpose",
                  r"reported: code 1 .*" + ("digest none" if no_digest_yet else "")))
# Where weights are written into the receivers' memory, both ends wait for each other there.
CASES += [
    ("none-peer", 2, PHASES[3], 0, None, None),
    ("kill-peer", 2, PHASES[3], 137, r"rank 2 .* is gone", None),
    ("stop-peer", 3, PHASES[3], 4, r"rank 3 \(.*\)", r"reported: code 4"),
    ("throw-peer", 3, PHASES[3], 1, r"rank 3 .*a fault on purpose", r"reported: code 1 .*digest none"),
]
CASES += [
    ("damage", 0, ("resume", "trainer", "weights"), 3,
     r"rank 0 .*is not what it was before it was offloaded",
     r"reported: code 3 of '0 trainer gpu 0' tensor 'decoder\.[^']+' phase 'resume' poisoned 0 committed 1"),
    ("damage", 1, ("resume", "trainer", "optimizer"), 3,
     r"rank 1 .*is not what it was before it was offloaded",
     r"reported: code 3 of '1 trainer gpu 1' tensor '(master|exp_avg|exp_avg_sq) of decoder\.[^']+'"),
    ("damage", 0, ("transfer", "inference", "weights"), 3,
     r"error: rank 2 \(.*\): in phase verify: inference differs from the trainer in 1 of \d+ tensors",
     r"reported: code 3 of '2 inference gpu 0' tensor 'model\.[^']+' phase 'verify' poisoned 1 "
     r"committed 0 digest 1/\d+"),
    ("damage", 2, ("transfer", "inference", "weights"), 0, None, None),  # it is overwritten
    ("damage-full", 3, ("compare", "inference", "weights"), 3,
     r"error: rank 3 \(inference, .*, gpu 1\): in phase verify: these weights are not the trainer's: "
     r"model\.\S+ differs first at element \d+",
     r"reported: code 3 of '3 inference gpu 1' tensor 'model\.[^']+' phase 'verify' poisoned 1 "
     r"committed 0 digest 0/\d+"),
]


DRIFT_TRAINERS = 3  # and as many inference ranks, each a replica of its own


def drift_case(dice):
    """Replicas that differ by small numbers, which often add up to nothing: of the trainer when it
    digests, or of what inference is sent."""
    at_trainer = dice.random() < 0.5
    while True:
        steps = [0] * DRIFT_TRAINERS
        for rank in dice.sample(range(DRIFT_TRAINERS), dice.randint(1, DRIFT_TRAINERS)):
            steps[rank] = dice.randint(1, 3) * dice.choice((1, -1))
        if dice.random() < 0.5:
            steps[2] = -steps[1]
        if any(steps) and not (at_trainer and len(set(steps)) == 1):
            break
    if at_trainer:
        phase = ("digest", "trainer", "weights")
        usual = [s for s in steps if 2 * steps.count(s) > len(steps)]
        odd = [r for r, s in enumerate(steps) if usual and s != usual[0]]
        error = r"the trainer's own replicas differ in 1 of \d+ tensors"
        error += "" if odd else ".*where no bytes are those of most replicas"
    else:
        phase = ("transfer", "inference", "weights")
        odd = [DRIFT_TRAINERS + r for r, s in enumerate(steps) if s] if 0 in steps else []
        error = r"inference differs from the trainer in 1 of \d+ tensors"
    if len(odd) == 1:
        error = rf"rank {odd[0]} \(.*{error}.*this rank holds the wrong bytes"
    elif odd:
        error += ".*wrong bytes are held by " + ".*".join(rf"rank {rank} \(" for rank in odd)
    whose = rf"{odd[0]} \w+ gpu \d" if len(odd) == 1 else "nobody"
    ranks = ",".join(f"{rank}:{step}" for rank, step in enumerate(steps) if step)
    return ("drift", ranks, phase, 3, error,
            rf"reported: code 3 of '{whose}' tensor 'model\.[^']+' phase 'verify' poisoned 1 "
            r"committed 0 digest 1/\d+")


def check(arguments, case):
    """What is wrong with one case, as texts."""
    fault, rank, place, code, error, output = case
    fault, _, how = fault.partition("-")
    timeout = STOPPED_TIMEOUT_S if fault == "stop" else TIMEOUT_S
    program = [arguments.program, fault, str(rank), *place, str(timeout), how]
    ranks = RANKS
    if fault == "drift":
        ranks = 2 * DRIFT_TRAINERS
        program += ["host", "megatron:tp=1", "sglang:tp=1"]

    def judge(run):
        came = f"phase {' '.join(place)}" in run.stdout
        return unlike(run, code, output, error) + ([] if came else ["the phase did not come"])

    return judged_run(f"{fault} rank {rank} in {' '.join(place)}", (arguments.mpiexec, ranks, program), LIMIT_S, judge)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--only", help="run the cases of one fault")
    parser.add_argument("--every", type=int, default=1, help="run each of so many cases")
    parser.add_argument("--drifts", type=int, default=6, help="how many random cases of drift")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    CASES.extend(drift_case(dice) for _ in range(arguments.drifts))
    cases = [case for case in CASES if arguments.only in (None, case[0].partition("-")[0])]
    return judge_cases(lambda case: check(arguments, case), cases[::arguments.every])


if __name__ == "__main__":
    sys.exit(main())
