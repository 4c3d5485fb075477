#!/usr/bin/env python3
"""What a command of a resident job costs over its phases, as its client sees it.

usage: resident_commands.py BUILD_DIR [RANKS] [--backend host|cuda]

A job of tiny-dense serves. Thirty times it hands over and takes back, asked over its socket, as the
program itself asks: `over its phases` is the time from the request to the answer, less that from the
first phase's start to the last one's end; `nothing to do` is a second update that finds everything so;
`with its process` is the same, started as a program.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 30
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "support"))
# pylint: disable=wrong-import-position
from resident_job import ResidentJob  # noqa: E402


def ask(job, errand, command, train=True):
    """The answer to a request, and the milliseconds until it came."""
    request = {"protocol": 1, "errand": errand, "cancel_on_disconnect": False, "command": command and {
        "command": command, "versions": 1, "verify": "digest", "train": train, "scope": None},
        "rendering": {"table": False, "unicode": False, "color": False, "json": True, "trace": False}}
    with socket.socket(socket.AF_UNIX) as connection:
        begin = time.monotonic()
        connection.connect(job.record["socket"])
        connection.sendall((json.dumps(request) + "\n").encode())
        for line in connection.makefile(encoding="utf-8"):
            event = json.loads(line)
            if event["event"] == "done":
                assert event["exit_code"] == 0, event
                return event, (time.monotonic() - begin) * 1e3
    raise RuntimeError("the job has closed without an answer")


def phases_ms(report):
    phases = report["versions"][0]["phases"]
    return 1e3 * (max(phase["start_s"] + phase["seconds"] for phase in phases)
                  - min(phase["start_s"] for phase in phases))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", metavar="BUILD_DIR")
    parser.add_argument("ranks", metavar="RANKS", type=int, nargs="?", default=4)
    parser.add_argument("--backend", choices=["host", "cuda"], default="host")
    arguments = parser.parse_args()
    binary, ranks = os.path.join(arguments.build, "awex-colocate"), arguments.ranks
    times = {"over its phases": [], "nothing to do": [], "status": [], "with its process": []}
    with tempfile.TemporaryDirectory() as scratch:
        with ResidentJob("mpirun", [binary, "serve"], binary, os.path.join(scratch, "job"), scratch, ranks, 60,
                         backend=arguments.backend) as job:
            for _ in range(ROUNDS):
                event, ms = ask(job, "update", "hand_over")
                times["over its phases"].append(ms - phases_ms(json.loads(event["json"])))
                times["nothing to do"].append(ask(job, "update", "hand_over", train=False)[1])
                begin = time.monotonic()
                subprocess.run([binary, "update", "--job", job.directory, "--no-train"], check=True,
                               capture_output=True)
                times["with its process"].append((time.monotonic() - begin) * 1e3)
                ask(job, "resume", "take_back")
                times["status"].append(ask(job, "status", None)[1])
            job.stop()
    print(f"{ranks} ranks on {arguments.backend}, {ROUNDS} times    median  slowest (ms)")
    for name, values in times.items():
        print(f"{name:24}  {statistics.median(values):7.2f}  {max(values):7.2f}")


if __name__ == "__main__":
    main()
