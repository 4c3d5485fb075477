"""Runs programs for tests: ones that must succeed, and ones under mpirun that fail, to find what they
leave behind; and judges many such runs."""

import concurrent.futures
import os
import re
import subprocess
import sys
import time
import uuid

from sessions import kill_session, run_in_session, session_of


class Run:
    """One finished run: code, stdout, stderr, seconds, when it ended (time.monotonic), and `left`, what is
    still there of it."""

    def __init__(self, code, stdout, stderr, span, left):
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        self.seconds = span[1] - span[0]
        self.end = span[1]
        self.left = left


def output_of(command, stderr_says=""):
    """The standard output of a command that must succeed; its stderr must match a pattern."""
    done = run_in_session(command, 200, stderr=subprocess.PIPE)
    if done.returncode != 0 or not re.search(stderr_says, done.stderr):
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
    return done.stdout


def processes_with(token):
    """Pids of processes that have inherited `token` in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environment:
                if token.encode() in environment.read():
                    found.append(int(pid))
        except OSError:
            pass  # it has ended, or is not ours
    return found


def runs_program(pid, program):
    """Whether the process runs the program, a path; False once it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/exe") == os.path.realpath(program)
    except OSError:
        return False


def hears_signal(pid, number):
    """Whether a process has a handler for a signal."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        caught = re.search(r"SigCgt:\s*(\w+)", status.read())
    return bool(int(caught[1], 16) >> (number - 1) & 1)


def shared_files_of(pids):
    """Files in /dev/shm that the processes map."""
    files = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
                files.update(re.findall(r"(/dev/shm/\S+)", maps.read()))
        except OSError:
            pass  # it has ended
    return files


def wait_for_no_process(token):
    """Processes still there a moment after mpirun has ended."""
    for _ in range(50):
        left = processes_with(token)
        if not left:
            return []
        time.sleep(0.1)
    return left


def told_once(text):
    """The text without the lines "shm: FILE" that it has already: each rank tells the files of all."""
    told = set()
    return "".join(line for line in text.splitlines(keepends=True)
                   if not line.startswith("shm: ") or (line not in told and not told.add(line)))


def mpi_run(mpiexec, ranks, program, limit_s, disturb=None):
    """Runs `program` (a list) on `ranks` ranks for at most `limit_s` seconds. No process of it is left,
    however this ends.

    `disturb`, if given, is called with a function that returns the pids of the ranks, while the
    job runs. Raises TimeoutError with the output if the job does not end in time.
    """
    token = uuid.uuid4().hex
    command = [mpiexec, "--oversubscribe", "-n", str(ranks), *program]
    start = time.monotonic()
    files = set()
    with session_of(command, env=dict(os.environ, AWEX_TEST_TOKEN=token), text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if disturb:

            def rank_pids():
                return sorted(pid for pid in processes_with(token) if pid != process.pid)

            disturb(rank_pids)
            files = shared_files_of(rank_pids())
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as expired:
            kill_session(process.pid)
            stdout, stderr = process.communicate()
            raise TimeoutError(f"not done after {limit_s} s\n{told_once(stdout)}\n{stderr}") from expired
        end = time.monotonic()
        left = [f"process {pid}" for pid in wait_for_no_process(token)]
    files |= set(re.findall(r"^shm: (\S+)", stdout, re.MULTILINE))
    left += [name for name in sorted(files) if os.path.exists(name)]
    return Run(process.returncode, told_once(stdout), stderr, (start, end), left)


AT_ONCE = 3  # jobs that wait for most of their time


def unlike(run, code, stdout=None, stderr=None):
    """What of a run is not as expected, as texts. The outputs are patterns; None fits all."""
    problems = [] if run.code == code else [f"exit code {run.code} instead of {code}"]
    for name, text, pattern in (("stderr", run.stderr, stderr), ("stdout", run.stdout, stdout)):
        if pattern is not None and not re.search(pattern, text):
            problems.append(f"{name} does not match {pattern}")
    return problems


def judged_run(name, launch, limit_s, judge):
    """What is wrong with the run of mpi_run(*launch), as texts: what `judge` finds in it, and what it has left
    behind. One without a fault is told as ok."""
    try:
        run = mpi_run(*launch, limit_s)
    except TimeoutError as late:
        return [str(late)]
    problems = judge(run) + [f"left behind: {what}" for what in run.left]
    if problems:
        return [*problems, f"it took {run.seconds:.1f} s", run.stdout, run.stderr]
    print(f"ok: {name}: {run.seconds:.1f} s", flush=True)
    return []


def judge_cases(check, cases):
    """Tells what `check` says is wrong with each case, several at once. Returns the exit code: 1 too where
    there are none."""
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for case, problems in zip(cases, pool.map(check, cases)):
            if problems:
                failed += 1
                print(f"FAILED: {case}", *problems, sep="\n  ", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} cases passed")
    return 1 if failed or not cases else 0
