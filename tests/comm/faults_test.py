#!/usr/bin/env python3
"""What becomes of a job when a rank is killed, stopped, told to end, or fails.

Every case runs fault_program under mpirun and looks at the exit code, who is named, how long after the
fault it was reported, and that neither a process nor a file in /dev/shm is left. mpirun's own start and
end take their time on a machine that has more to do: they are not judged, only bounded.
"""

import argparse
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from mpi_run import judge_cases, judged_run, unlike  # noqa: E402  pylint: disable=wrong-import-position

LATE_TIMEOUT_S = 3.0
# Nobody waits for it: what is reported well before was not found by waiting.
AT_ONCE_TIMEOUT_S = 40.0
AT_ONCE_S = 20.0
# Of what a resident job waits for, and how much longer than the timeout it may take to give up on a rank.
RESIDENT_TIMEOUT_S = 6.0
GIVES_UP_S = 2.0 + 1.0  # the second is for a machine that has more to do
LATE_S = LATE_TIMEOUT_S + 20.0
SERVED = r"(rank \d: told to end 0, asked 0, woken 0\n){%d}"  # all three commands, by all ranks
LIMIT_S = 90.0  # of a whole run

# (ranks, fault, rank, place, exit code, pattern on stderr, at once or after the timeout)
CASES = [
    (1, "none", 0, "-", 0, None, "at once"),
    (2, "none", 0, "-", 0, None, "at once"),
    (4, "none", 0, "-", 0, None, "at once"),
    (7, "none", 0, "-", 0, None, "at once"),
    (4, "kill", 3, "work", 137, r"rank 3 \(inference, host \S+, gpu 1\) pid \d+ is gone", "at once"),
    (4, "kill", 2, "agree", 137, r"rank 2 \(.*pid \d+ is gone in phase 'transfer'", "at once"),
    (4, "kill", 1, "gather", 137, r"rank 1 \(.*is gone in phase 'prepare'", "at once"),
    (4, "kill", 3, "exchange", 137, r"rank 3 \(.*is gone", "at once"),
    (4, "kill", 1, "finish", 137, r"rank 1 \(.*is gone", "at once"),
    (4, "kill", 0, "work", 137, r"rank 0 \(.*is gone", "at once"),
    (4, "crash", 2, "reduce", 139, r"rank 2 \(.*is gone", "at once"),
    (4, "stop", 3, "agree", 4, r"rank 3 \(inference.* has not finished phase 'transfer'", "late"),
    (4, "stop", 3, "gather", 4, r"rank 3 \(.* has not come to 'a gathering'", "late"),
    (4, "stop", 2, "exchange", 4, r"rank 2 \(.* is stopped by a signal", "late"),
    (3, "stop", 2, "finish", 4, r"rank 2 \(.* has not come to 'the end of the job'", "late"),
    (4, "stop", 0, "agree", 4, r"rank 0 \(trainer.* has not ended phase 'transfer'", "late"),
    (2, "stop", 0, "reduce", 4, r"rank 0 \(.* has not completed 'a sum'", "late"),
    (4, "hang", 2, "in late gather", 4, r"rank 2 \(.* has not answered in 'a gathering', to which all", "late"),
    (3, "hang", 2, "in finish", 4, r"rank 2 \(.* has not answered in 'the end of the job', to which all", "late"),
    (4, "hang", 1, "in recovery", 4, r"rank 1 \(.* has not answered in 'the next epoch's communicator'", "late"),
    (3, "lose", 1, "in reduce", 4, r": rank 0 \(.*, rank 1 \(.* have not completed 'a sum', though all", "late"),
    (4, "hang", 0, "work", 4, r"rank \d \(.*in phase transfer: local work is not done after", "late"),
    (4, "hang", 0, "agree", 4, r"rank 0 \(trainer.* has not ended phase 'transfer'", "late"),
    (4, "throw", 2, "exchange", 1, r"rank 2 \(.*in phase transfer: a fault on purpose", "at once"),
    (4, "throw", 2, "work", 1, r"rank 2 \(.*a fault on purpose", "at once"),
    (4, "throw", 0, "agree", 1, r"rank 0 \(.*a fault on purpose", "at once"),
    (7, "throw", 5, "gather", 1, r"rank 5 \(.*a fault on purpose", "at once"),
    (2, "terminate", 1, "agree", 1, r"told to end by SIGTERM in phase 'transfer'", "at once"),
    (4, "none", 2, "recovery", 0, None, "at once"),
    (4, "kill", 3, "recovery", 137, r"rank 3 \(inference.*is gone", "at once"),
    (4, "stop", 2, "recovery", 4, r"rank 2 \(.* not come to the recovery from .a cause.*is stopped", "at once"),
    (3, "hang", 0, "recovery", 4, r"rank 0 \(.* not come to the recovery from .a cause", "late"),
    (2, "terminate", 1, "recovery", 1, r"told to end by SIGTERM", "at once"),
    (4, "kill", 2, "rest", 137, r"rank 2 \(.*is gone", "at once"),
    (4, "kill", 0, "rest", 137, r"rank 0 \(.*is gone", "at once"),
    (2, "stop", 1, "command", 4, r"rank 1 \(.*not come to the recovery.*is stopped by a signal", "in time"),
    (4, "stop", 0, "command", 4, r"rank 0 \(.*not come to the recovery.*is stopped by a signal", "in time"),
    (2, "hang", 0, "command", 4, r"rank 0 \(.*not come to the recovery.*rank 0 .*not taken part", "in time"),
    (4, "hang", 0, "command", 4, r"rank 0 \(.*not come to the recovery.*rank 0 .*not taken part", "in time"),
    (4, "hang", 2, "command", 4, r"rank 2 \(.*not come to the recovery.*rank 2 .*not taken part", "in time"),
    (6, "hang", 5, "command", 4, r"rank 5 \(.*not come to the recovery.*rank 5 .*not taken part", "in time"),
]

# Resident jobs that go on or end in order: (ranks, fault, rank, place, timeout, exit code, pattern on stdout,
# pattern on stderr)
RESIDENT = [
    (1, "none", 0, "rest", 40, 0, SERVED % 1, r"^$"),
    (3, "none", 0, "rest", 40, 0, SERVED % 3, r"^$"),
    (4, "throw", 2, "rest", 40, 1, SERVED % 4, r"rank 2 \(.*a fault on purpose"),
    (4, "throw", 0, "command", 40, 1, SERVED % 4, r"rank 0 \(.*a fault on purpose"),
    # Late, but it lives, or comes soon.
    (3, "compute", 2, "command", 2, 1, SERVED % 3, r"rank 2 \(.*not taken part in 'the ring' after 2.00 s"),
    (3, "compute", 0, "command", 2, 1, SERVED % 3, r"not taken part in 'the ring' after 2.00 s"),
    (4, "sleep", 1, "command", 2, 1, SERVED % 4, r"rank 1 \(.*not taken part in 'the ring' after 2.00 s"),
    (3, "terminate", 2, "rest", 40, 0, r"rank 0: told to end 1, asked 0, woken 0\n", r"^$"),
    (3, "terminate", 0, "rest", 40, 0, r"rank 0: told to end 1, asked 0, woken 1\n", r"^$"),
    # A signal that comes before the last one is handled is none of its own; nor is one that comes when the job has ended.
    (4, "terminate all", 1, "rest", 40, 0, r"(rank \d: told to end 1, asked 0, woken [12]\n){4}", r"^$"),
    (1, "terminate all", 0, "rest", 40, 0, r"rank 0: told to end 1, asked 0, woken 2\n", r"^$"),
    (3, "terminate", 1, "command", 40, 1, r"(rank \d: told to end 1, asked 0, woken \d\n){3}",
     r"told to end by SIGTERM in phase 'transfer'"),
    (4, "terminate all", 0, "command", 40, 1, r"(rank \d: told to end 1, asked 0, woken [12]\n){4}",
     r"told to end by SIGTERM in phase 'transfer'"),
    (3, "ask all", 1, "rest", 40, 0, r"(rank \d: told to end 0, asked 1, woken 1\n){3}", r"^$"),
]


def time_faults(stdout, when):
    """What is wrong with the time from the fault to its first report."""
    fault = re.search(r"fault at ([\d.]+)", stdout)
    reports = re.findall(r"reported by rank \d+ at ([\d.]+)", stdout)
    if not fault or not reports:
        return ["the fault or its report has no time"]
    seconds = min(map(float, reports)) - float(fault[1])
    # Others may have begun to wait before the fault.
    least, most = {
        "at once": (0, AT_ONCE_S),
        "late": (0.8 * LATE_TIMEOUT_S, LATE_S),
        "in time": (0.8 * RESIDENT_TIMEOUT_S, RESIDENT_TIMEOUT_S + GIVES_UP_S),
    }[when]
    return [] if least <= seconds <= most else [f"reported {seconds:.1f} s after the fault, not {when}"]


def check(arguments, case):
    """What is wrong with a job that a fault ends, as texts."""
    ranks, fault, rank, place, code, pattern, when = case

    def judge(run):
        problems = unlike(run, code, stderr=pattern)
        reports = re.findall(r"reported by rank \d+", run.stdout)
        # A stopped rank 0 is woken by mpirun before it is killed, and then writes its report as well.
        allowed = [0] if pattern is None else [1, 2] if (fault, rank) == ("stop", 0) else [1]
        if len(reports) not in allowed:
            problems.append(f"reports: {reports}")
        if pattern:
            problems += time_faults(run.stdout, when)
        if ranks > 1 and "shm: " not in run.stdout:
            problems.append("saw no shared memory file of MPI: this check has lost its object")
        return problems

    timeout = {"late": LATE_TIMEOUT_S, "in time": RESIDENT_TIMEOUT_S}.get(when, AT_ONCE_TIMEOUT_S)
    program = [arguments.program, fault, str(rank), place, str(timeout)]
    return judged_run(f"{ranks} ranks, {fault} rank {rank} at {place}", (arguments.mpiexec, ranks, program), LIMIT_S,
                      judge)


def check_resident(arguments, case):
    """What is wrong with a resident job, as texts."""
    ranks, fault, rank, place, timeout, code, stdout, stderr = case

    def judge(run):
        problems = unlike(run, code)
        told = "".join(sorted(line for line in run.stdout.splitlines(keepends=True) if line.startswith("rank ")))
        if not re.search(stdout, told):
            problems.append(f"stdout does not match {stdout}")
        # mpirun has its say on every exit code.
        said = "".join(line for line in run.stderr.splitlines(keepends=True) if line.startswith("error: "))
        if not re.search(stderr, said):
            problems.append(f"stderr does not match {stderr}")
        return problems

    program = [arguments.program, fault, str(rank), place, str(timeout)]
    return judged_run(f"resident, {ranks} ranks, {fault} rank {rank} at {place}",
                      (arguments.mpiexec, ranks, program), LIMIT_S, judge)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpiexec", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--only", default="", help="a pattern of the cases to run")
    parser.add_argument("--every", type=int, default=1, help="run each of so many cases")
    arguments = parser.parse_args()
    cases = [case for case in [*CASES, *RESIDENT] if re.search(arguments.only, str(case))][::arguments.every]
    return judge_cases(lambda case: (check if case in CASES else check_resident)(arguments, case), cases)


if __name__ == "__main__":
    sys.exit(main())
