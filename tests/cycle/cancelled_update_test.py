#!/usr/bin/env python3
"""A job that is told to end or killed loses nothing: not the cause, not a finished version.

usage: cancelled_update_test.py MPIEXEC BINARY [--all]

SIGINT, SIGTERM and SIGHUP, once and twice, to one rank, all ranks and mpirun, while versions are made and while
weights are read; SIGKILL of one rank and of all. --all runs 100 of the first and 12 of the second.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import output_of, processes_with, shared_files_of, wait_for_no_process  # noqa: E402
from sessions import session_of  # noqa: E402
from storage import build_storage, through_storage  # noqa: E402

TIMEOUT_S = 60
START_LIMIT_S = 90
END_LIMIT_S = 30  # from the signal on: no end waits for the timeout
AT_ONCE = 2


@dataclasses.dataclass
class Case:
    signal: signal.Signals
    gap_ms: int  # 0 for one signal
    target: str  # "rank", "ranks" or "mpirun"
    ranks: int
    loading: bool
    seed: int

    def __str__(self):
        number = self.signal.name + (f" twice in {self.gap_ms} ms" if self.gap_ms else "")
        return f"{number} to {self.target}, {self.ranks} ranks, {'loading' if self.loading else 'phases'}"


@dataclasses.dataclass
class Ended:
    code: int
    stderr: str
    seconds: float
    left: list


class Jobs:
    """Runs cases; every one has a directory of its own."""

    def __init__(self, mpiexec, binary, directory):
        self.mpiexec, self.binary, self.directory = mpiexec, os.path.realpath(binary), directory
        self.library = build_storage(directory)
        self.model = os.path.join(directory, "model")
        output_of([binary, "checkpoint", "--preset", "tiny-dense", "--out", self.model, "-q"])

    def command(self, case, report):
        storage = through_storage(self.library, ms=200) if case.loading else []
        return [self.mpiexec, "--oversubscribe", *storage, "-n", str(case.ranks), self.binary, "update",
                "--model", self.model, "--backend", "host", "--limits", "off", "--kv-cache", "0",
                "--versions", "100000", "--timeout", f"{TIMEOUT_S}s", "--json", str(report)]

    def rank_pids(self, token):
        pids = []
        for pid in processes_with(token):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == self.binary:
                    pids.append(pid)
        return sorted(pids)

    def run(self, case, report):
        """Starts a job, disturbs it as the case says, and waits for its end."""
        token = uuid.uuid4().hex
        log = report.with_name("stderr")
        dice = random.Random(case.seed)
        with open(log, "wb") as stderr, \
                session_of(self.command(case, report), env=dict(os.environ, AWEX_TEST_TOKEN=token),
                           stdout=subprocess.DEVNULL, stderr=stderr) as process:
            wait_for_line(log, r"^update: .* ranks, " if case.loading else r"^version 1 of .*committed",
                          process)
            time.sleep(dice.uniform(0, 0.3))
            pids = self.rank_pids(token)
            files = shared_files_of(pids)
            targets = {"rank": [dice.choice(pids)], "ranks": pids, "mpirun": [process.pid]}[case.target]
            start = time.monotonic()
            for gap in (0, case.gap_ms)[:2 if case.gap_ms else 1]:
                time.sleep(gap / 1000)
                for pid in targets:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, case.signal)
            code = process.wait(timeout=END_LIMIT_S)
            seconds = time.monotonic() - start
            left = [f"process {pid}" for pid in wait_for_no_process(token)]
        left += remaining_files(case, files)
        return Ended(code, log.read_text(encoding="utf-8", errors="replace"), seconds, left)

    def faults(self, case):
        """What is wrong after a case, and the seconds that its end took."""
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        report = directory / "report.json"
        try:
            ended = self.run(case, report)
        except (subprocess.TimeoutExpired, TimeoutError) as late:
            return [str(late), (directory / "stderr").read_text(encoding="utf-8")], float("inf")
        faults = [f"left: {ended.left}"] if ended.left else []
        if case.signal != signal.SIGKILL:
            faults += [f"left: {name}" for name in os.listdir(directory)
                       if name not in ("report.json", "stderr")]
        if ended.code == 0:
            faults.append("exit code 0")
        faults += faults_of_report(report, ended.stderr)
        if case.target != "mpirun" and case.signal != signal.SIGKILL:
            # Of two SIGINTs the second ends a rank, whose own words then are the cause.
            if not re.search(f"(told to end|ended) by (a second )?{case.signal.name}", ended.stderr):
                faults.append("no cause on stderr")
        return (faults + [ended.stderr] if faults else []), ended.seconds


def remaining_files(case, files):
    """Shared files that are still there. At a second signal mpirun kills the ranks and itself at once, and
    leaves what Open MPI itself shares: that is not the program's, and is removed here."""
    remaining = [name for name in sorted(files) if os.path.exists(name)]
    if case.target != "mpirun" or not case.gap_ms:
        return remaining
    for name in remaining:
        if is_of_open_mpi(name):
            os.unlink(name)
    return [name for name in remaining if not is_of_open_mpi(name)]


def is_of_open_mpi(name):
    return os.path.basename(name).startswith(("vader_segment.", "sm_segment."))


def wait_for_line(log, pattern, process):
    give_up = time.monotonic() + START_LIMIT_S
    while not re.search(pattern, log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        if process.poll() is not None or time.monotonic() > give_up:
            raise TimeoutError(f"the job has not come to /{pattern}/, exit code {process.returncode}")
        time.sleep(0.01)


def faults_of_report(path, stderr):
    """The report is whole, says that the job failed, and has every version that was told of."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"no report: {error}"]
    faults = [] if report["ok"] is False else ["the report says ok"]
    told = {int(version) for version in re.findall(r"(?m)^version (\d+) of \d+: committed", stderr)}
    committed = {version["version"] for version in report["versions"] if version["committed"]}
    if not told <= committed:
        faults.append(f"lost versions: {sorted(told - committed)}")
    return faults


def some_cases():
    term, interrupt, kill = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
    return [Case(term, 25, "ranks", 4, False, 1), Case(interrupt, 0, "rank", 2, True, 2),
            Case(term, 2, "mpirun", 2, False, 3), Case(interrupt, 200, "ranks", 2, False, 4),
            Case(term, 0, "ranks", 2, True, 5), Case(interrupt, 25, "mpirun", 4, False, 6),
            Case(signal.SIGHUP, 2, "rank", 2, False, 9),
            Case(kill, 0, "rank", 2, False, 7), Case(kill, 0, "ranks", 2, False, 8)]


def all_cases():
    """Each signal, number, gap, target and moment at some number of ranks; and kills at all."""
    ranks = (2, 4, 8)
    rows = [(number, gap, target, loading)
            for number in (signal.SIGTERM, signal.SIGINT) for gap in (0, 2, 25, 200)
            for target in ("rank", "ranks", "mpirun") for loading in (False, True)]
    rows = rows + rows + rows[:4]
    cases = [Case(number, gap, target, ranks[(i + i // 48) % 3], loading, i)
             for i, (number, gap, target, loading) in enumerate(rows)]
    kills = [(target, loading, count) for target in ("rank", "ranks") for loading in (False, True)
             for count in ranks]
    return cases + [Case(signal.SIGKILL, 0, target, count, loading, i)
                    for i, (target, loading, count) in enumerate(kills)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mpiexec")
    parser.add_argument("binary")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    cases = all_cases() if options.all else some_cases()
    failed, longest = 0, 0.0
    with tempfile.TemporaryDirectory() as directory:
        jobs = Jobs(options.mpiexec, options.binary, directory)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            for case, (faults, seconds) in zip(cases, pool.map(jobs.faults, cases)):
                failed += bool(faults)
                longest = max(longest, seconds)
                text = "\n".join(["FAILED", *faults]) if faults else "ok"
                print(f"{case}: {seconds:.1f} s: {text}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} as they should be; the longest end took {longest:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
