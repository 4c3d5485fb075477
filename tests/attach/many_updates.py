#!/usr/bin/env python3
"""Many updates with attached engines: neither they nor their ranks must grow.

usage: many_updates.py MPIEXEC AWEX_COLOCATE LIBRARY --updates 200 [--ranks 4]

An update is a step of all trainers, a hand-over and a take-back. After a warm-up, and at every tenth update, all
processes are looked at: memory of their own, their share of what is shared (PSS), the job's files in memory that they
map, descriptors, threads.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from attached_job import Job, Player, Programs, as_megatron, canonical, hand_over, take_back, usage_of  # noqa: E402
from sessions import signals_as_exceptions  # noqa: E402

WARM_UP = 20
LOOK_EVERY = 10
MAY_GROW_KB = {"anonymous_kb": 1024, "pss_kb": 1024, "memfd_kb": 0, "descriptors": 0, "threads": 0}


def begin(job, pairs):
    players = [Player(job, role, device) for role in ("trainer", "inference") for device in range(pairs)]
    for player in players:
        player.end()
        player.do("declare")
    for player in players[:pairs]:
        player.do("step", 0)
    for player in players:
        player.begin("seal")
    for player in players:
        player.end()
    job.serves()
    return players


def update(trainers, servers, paths, version):
    for player, path in zip(trainers, paths):
        player.begin("train", path, version)
    for player in trainers:
        player.end()
    if set(hand_over(trainers, servers, version - 1)) != {version}:
        sys.exit(f"another version than {version}")
    take_back(trainers, servers)


def measure(arguments, scratch):
    """The usage of all processes, by name, as it was at each look."""
    pairs = arguments.ranks // 2
    job = Job(scratch, arguments.ranks, "--admission", "off", trainer=f"megatron:tp={pairs}",
              inference=f"vllm:tp={pairs}")
    players, looks = [], {}
    try:
        players = begin(job, pairs)
        trainers, servers = players[:pairs], players[pairs:]
        pids = {f"rank {rank}": pid for rank, pid in enumerate(job.rank_pids())}
        pids.update({f"{player.role} {player.device}": player.process.pid for player in players})
        paths = [os.path.join(scratch, f"{rank}.npz") for rank in range(pairs)]
        for rank, path in enumerate(paths):
            np.savez(path, **as_megatron(canonical(1), rank, pairs))
        for version in range(1, arguments.updates + 1):
            update(trainers, servers, paths, version)
            if version >= WARM_UP and version % LOOK_EVERY == 0:
                for name, pid in pids.items():
                    looks.setdefault(name, []).append(usage_of(pid))
    finally:
        for player in players:
            player.kill()
        job.end()
    return looks


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mpiexec")
    parser.add_argument("binary", help="awex-colocate")
    parser.add_argument("library", help="libawex_colocate.so")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4)
    arguments = parser.parse_args()
    Programs.mpiexec, Programs.binary, Programs.library = arguments.mpiexec, arguments.binary, arguments.library
    scratch = tempfile.mkdtemp(prefix="awex-many-updates-")
    start = time.monotonic()
    with signals_as_exceptions():
        try:
            looks = measure(arguments, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"{arguments.updates} updates, {arguments.ranks} ranks, {time.monotonic() - start:.0f} s; from update {WARM_UP} on:")
    grown = False
    for name, usages in looks.items():
        parts = []
        for what, most in MAY_GROW_KB.items():
            values = [usage[what] for usage in usages]
            parts.append(f"{what} {values[0]} -> {values[-1]} ({min(values)} to {max(values)})")
            grown = grown or values[-1] - values[0] > most
        print(f"  {name}: " + ", ".join(parts))
    print("grown" if grown else "nothing has grown")
    return 1 if grown or not looks else 0


if __name__ == "__main__":
    sys.exit(main())
