"""Random runs against a job, by seed and number, each judged: what such scripts share."""

import collections
import os
import random
import shutil
import tempfile
import time
import traceback

from resident_job import Trouble, text_of
from sessions import signals_as_exceptions

LOAD_S = 0.5


def allowance_s():
    """On a machine that has more to do than it has cores each process waits for its turn: LOAD_S for each whole load
    per core."""
    return LOAD_S * int(os.getloadavg()[0] / (os.cpu_count() or 1))


def add_options(parser, runs, ranks):
    """With the usual number of runs and of ranks."""
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=ranks)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--only", type=int, help="the number of the one run to do")


class RandomRuns:
    """A script's runs. It adds `draw`, which yields for each run its kind, what is told of it and what `run` takes, and
    `forget`: after a failure the next run begins with another job."""

    def __init__(self, arguments, scratch):
        self.arguments, self.scratch = arguments, scratch
        self.job, self.jobs = None, 0
        self.counts, self.failures, self.slowest = collections.Counter(), [], {}

    def all(self):
        dice = random.Random(self.arguments.seed * 1000003 + self.arguments.ranks)
        for number, (kind, told, what) in enumerate(self.draw(dice)):
            if self.arguments.only is not None and number != self.arguments.only:
                continue
            self.counts[kind] += 1
            told = f"run {number}: {told}"
            start = time.monotonic()
            try:
                self.run(what)
                print(f"ok {told}: {time.monotonic() - start:.1f} s", flush=True)
            except Exception as problem:  # pylint: disable=broad-except
                self.fail(told, problem)

    def fail(self, told, problem):
        text = str(problem) if isinstance(problem, Trouble) else traceback.format_exc()
        self.failures.append(f"{told}: {text}")
        print(f"FAILED {told}: {text}", flush=True)
        if self.job:
            print("  the job's log:", text_of(self.job.log)[-3000:], "its errors:", text_of(self.job.errors)[-3000:],
                  sep="\n", flush=True)
        self.forget()


def carry_out(make, arguments, prefix):
    """Does all runs of `make(arguments, scratch)`, ends what they leave, and prints the figures, also when a signal ends
    it. Returns the exit code."""
    scratch = tempfile.mkdtemp(prefix=prefix)
    with signals_as_exceptions():
        try:
            runs = make(arguments, scratch)
            try:
                runs.all()
            finally:
                runs.end()
                print(runs.figures(), flush=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return 1 if runs.failures else 0
