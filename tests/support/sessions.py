"""Runs programs of which no process is left, whatever becomes of the run: each is a session of its own,
which ends as a whole. mpirun's ranks have process groups of their own, but all in its session."""

import contextlib
import os
import signal
import subprocess
import threading
import time

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_LIMIT_S = 10  # a killed process that has not ended by then waits in the kernel


def living_members(leader):
    """Pids of a session's processes that have not ended; its leader was the process `leader`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                state, _, _, session = stat.read().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(pid))
    return found


def kill_session(leader):
    """Kills all processes of a session and waits until they have ended, those too that start while the
    others are being killed."""
    give_up = time.monotonic() + END_LIMIT_S
    while (members := living_members(leader)) and time.monotonic() < give_up:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@contextlib.contextmanager
def signals_as_exceptions():
    """A session of its own does not get what a terminal or `timeout` sends to ours: so SIGTERM and SIGHUP
    unwind this program, as SIGINT does, instead of ending it at once."""
    def unwind(number, _):
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, unwind)
              for number in (signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class HeldSignals:
    """Signals that would end this program, held back while it does what must not be left half done: one that
    unwinds subprocess.Popen leaves a process of which nobody knows the pid. They are heard within `let_through`,
    and when the block ends."""

    def __enter__(self):
        self.came = []
        self.held = True
        here = threading.current_thread() is threading.main_thread()
        self.meanings = {number: meaning for number in ENDING_SIGNALS
                         if here and callable(meaning := signal.getsignal(number))}
        for number in self.meanings:
            signal.signal(number, self.hear)
        return self

    def __exit__(self, *_):
        self.held = False
        for number, meaning in self.meanings.items():
            signal.signal(number, meaning)
        self.hear_those_that_came()

    @contextlib.contextmanager
    def let_through(self):
        self.held = False
        try:
            self.hear_those_that_came()
            yield
        finally:
            self.held = True

    def hear(self, number, frame):
        if self.held:
            self.came.append(number)
            return
        self.held = True  # also while it unwinds
        self.meanings[number](number, frame)
        self.held = False

    def hear_those_that_came(self):
        while self.came:
            number = self.came.pop(0)
            self.meanings[number](number, None)


@contextlib.contextmanager
def session_of(command, **options):
    """A started program, as subprocess.Popen(command, **options); none of its processes is left when the
    block ends."""
    with signals_as_exceptions(), HeldSignals() as signals, \
            subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            with signals.let_through():
                yield process
        finally:
            kill_session(process.pid)


def run_in_session(command, limit_s, **options):
    """A finished run with its standard output as text. Raises subprocess.TimeoutExpired."""
    with session_of(command, stdout=subprocess.PIPE, text=True, **options) as process:
        stdout, stderr = process.communicate(timeout=limit_s)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
