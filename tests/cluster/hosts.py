"""The hosts of with_hosts.py as tests see them, and tests that run side by side."""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
# pylint: disable=wrong-import-position
from mpi_run import wait_for_no_process  # noqa: E402
from resident_job import Trouble, text_of  # noqa: E402

DISK = pathlib.Path("/mnt")  # of all hosts
NODES = ("n1", "n2")
JOB = ("--model", "preset:tiny-dense", "--trainer", "megatron:tp=2", "--inference", "sglang:tp=1", "--backend",
       "host", "--limits", "off", "--kv-cache", "1MiB", "--timeout", "60s")
START_LIMIT_S = 120.0  # of a job on a machine that has more to do


def on(host, *words):
    """A command line that runs `words` on a host, as a login there would."""
    pid = text_of(DISK / "cluster" / f"{host}.pid")
    return ["nsenter", "--target", pid, "--net", "--uts", "--ipc", "--mount", "--pid", f"--wdns={os.getcwd()}", "--",
            *map(str, words)]


def new_directory(name):
    directory = DISK / f"{name}-{uuid.uuid4().hex[:8]}"
    directory.mkdir()
    return directory


class Ended:
    """A command that has run: `code`, `out`, `err`."""

    def __init__(self, words, directory=DISK, limit_s=START_LIMIT_S, **variables):
        done = subprocess.run([str(word) for word in words], cwd=directory, stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, timeout=limit_s, check=False, env={**os.environ, **variables})
        self.words, self.code, self.out, self.err = words, done.returncode, done.stdout, done.stderr

    def __str__(self):
        return f"{' '.join(map(str, self.words))}\nexit code {self.code}\n{self.out}\n{self.err}"

    def must(self, code=0):
        if self.code != code:
            raise Trouble(f"the exit code is not {code}: {self}")
        return self


def lines_of(pattern, text):
    return re.findall(rf"(?m)^{pattern}", text)


def whole_report(path, told):
    """The report of a job that has failed. It must have every version that the job has told of."""
    report = json.loads(text_of(path))
    committed = {version["version"] for version in report["versions"] if version["committed"]}
    lost = set(map(int, lines_of(r"version (\d+) of \d+: committed", told))) - committed
    if report["ok"] or lost:
        raise Trouble(f"ok: {report['ok']}, lost versions: {sorted(lost)}")
    return report


def must_be_gone(token):
    """No process that has inherited the token is left on any host."""
    left = wait_for_no_process(token)
    if left:
        raise Trouble(f"processes are left: {[text_of(f'/proc/{pid}/cmdline') for pid in left]}")


def left_behind():
    """Files that jobs have left on the hosts, when none runs any more. What Slurm itself leaves of a step that it
    kills is not ours, and what is mounted is the machine's, such as sources in its /tmp."""
    look = "find /tmp /dev/shm -mindepth 1 -maxdepth 1 ! -name 'spmix_appdir_*' ! -exec mountpoint -q {} ';' -print"
    return [f"{host}: {path}" for host in NODES
            for path in subprocess.run(on(host, "sh", "-c", look), capture_output=True, text=True,
                                       check=False).stdout.split("\n") if path]  # find tells of what goes meanwhile


def main_side_by_side(names, at_once, first=()):
    """Runs the test cases of __main__, or those whose names contain one of `names`, some at a time: the `first`,
    which take longest, before the others."""
    def cases_of(suite):
        for part in suite:
            yield from cases_of(part) if isinstance(part, unittest.TestSuite) else [part]

    def run(case):
        result, begin = unittest.TestResult(), time.monotonic()
        case.run(result)
        return result, time.monotonic() - begin

    cases = [case for case in cases_of(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]))
             if not names or any(name in case.id() for name in names)]
    cases.sort(key=lambda case: not any(name in case.id() for name in first))
    failed = 0 if cases else 1
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for case, (result, seconds) in zip(cases, pool.map(run, cases)):
            problems = [text for _, text in result.failures + result.errors]
            skips = [f"skipped: {reason}" for _, reason in result.skipped]
            failed += bool(problems)
            print(f"{case.id()}: {seconds:.1f} s: {' '.join(skips) or ('FAILED' if problems else 'ok')}", *problems,
                  sep="\n", flush=True)
    left = left_behind()
    if left:
        print("FAILED: left behind:", *left, sep="\n  ")
    print(f"{len(cases) - failed} of {len(cases)} as they should be")
    return 1 if failed or left else 0
